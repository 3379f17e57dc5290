//! The rules of the module's documentation, one test each.

mod stages;
