//! Ids that nobody else can guess, from a secret that the caller draws.

use sha2::{Digest, Sha256};

/// A stream of ids. Who does not know the secret learns nothing of the next from those before.
#[derive(Debug)]
pub(super) struct Ids {
    secret: u64,
    drawn: u64,
}

impl Ids {
    pub(super) fn new(secret: u64) -> Self {
        Self { secret, drawn: 0 }
    }

    pub(super) fn draw(&mut self) -> u32 {
        self.drawn += 1;
        let mut digest = Sha256::new();
        digest.update(self.secret.to_be_bytes());
        digest.update(self.drawn.to_be_bytes());
        let [a, b, c, d, ..]: [u8; 32] = digest.finalize().into();
        u32::from_be_bytes([a, b, c, d])
    }
}
