//! What a holder says of one path.

/// The state of a path at the moment of the answer; two bits on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathState {
    /// Not here, or not shared.
    Absent = 0,
    /// Here and shared.
    Present = 1,
    /// Not here yet: it is being downloaded.
    OnItsWay = 2,
    /// The holder cannot say yet; for the asker as if no answer had come.
    Undecided = 3,
}

impl PathState {
    /// The state with that number; only the lower two bits count.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Absent,
            1 => Self::Present,
            2 => Self::OnItsWay,
            _ => Self::Undecided,
        }
    }

    /// Its number.
    pub const fn bits(self) -> u8 {
        self as u8
    }
}
