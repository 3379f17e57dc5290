//! Why a path is not shared.

use crate::format::StorePath;

/// Why a path is not shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSharedReason {
    /// `share.paths` is `none`.
    #[error("nothing is shared: share.paths is \"none\"")]
    Nothing,
    /// `share.paths` is `signed`, and it is not.
    #[error("no key of share.keys has signed it")]
    NotSigned,
    /// A glob of `share.exclude` matches, and no key of `share.keys` has signed it.
    #[error("its name matches share.exclude, and no key of share.keys has signed it")]
    Excluded,
    /// Content-addressed and unsigned: source trees and the like.
    #[error("it is content-addressed, as sources are, and no key of share.keys has signed it")]
    ContentAddressed,
    /// Neither signed nor built here: imported without signatures.
    #[error("it was not built here, and no key of share.keys has signed it")]
    NotBuiltHere,
    /// Something that it refers to, perhaps through others, is not shared.
    #[error("it refers to {}, which is not shared: {reason}", reference.basename())]
    ReferenceNotShared {
        /// What it refers to.
        reference: StorePath,
        /// Why that is not shared.
        reason: Box<NotSharedReason>,
    },
    /// No longer valid, or nothing that the database says of it makes sense.
    #[error("the database does not have it")]
    NotHeld,
    /// The database says that it refers to itself through others, which Nix never makes.
    #[error("it refers to itself through others")]
    Cycle,
    /// More than 20,000 paths would have to be looked at.
    #[error("it refers to too many paths")]
    TooMany,
}
