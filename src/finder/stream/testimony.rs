//! Which bytes of one piece to believe. Pure: what holders sent, and the digests that they
//! gave, in; what to do, out.
//!
//! Nobody's word counts for its own bytes. Two holders that agree are believed, if not more of
//! them disagree: that is not proof, which only the hash of the whole NAR is, but it keeps one
//! liar from spoiling a stream. One against one is settled by that proof (`inquiry`).

use crate::protocol::pieces::PieceDigest;

/// One of the holders that take part in a stream.
pub(super) type SourceId = usize;

/// What a holder says that a piece is, by its bytes or by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vote {
    pub(super) source: SourceId,
    pub(super) digest: PieceDigest,
}

/// What to do with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Pass on the bytes with this digest.
    Pass(PieceDigest),
    /// A digest is on its way.
    Wait,
    /// One more holder must send the piece.
    Ask,
    /// As many say this as that, and nobody else can be asked.
    Tie,
}

/// Judges a piece. `bytes` are the votes of those that sent it, `claims` of those that gave
/// its digest; `claims_pending`: a holder that has not voted may yet give its digest;
/// `others`: there are holders that have not voted and could send it.
pub(super) fn judge(
    bytes: &[Vote],
    claims: &[Vote],
    claims_pending: bool,
    others: bool,
) -> Verdict {
    let mut tally: Vec<(PieceDigest, Vec<SourceId>)> = Vec::new();
    for vote in bytes.iter().chain(claims) {
        match tally.iter_mut().find(|(digest, _)| *digest == vote.digest) {
            Some((_, sources)) if sources.contains(&vote.source) => {}
            Some((_, sources)) => sources.push(vote.source),
            None => tally.push((vote.digest, vec![vote.source])),
        }
    }
    tally.sort_by_key(|(_, sources)| std::cmp::Reverse(sources.len()));
    let here = |digest: &PieceDigest| bytes.iter().any(|vote| vote.digest == *digest);
    match &tally[..] {
        [] => Verdict::Ask,
        // Undisputed; a second word is waited for, not demanded.
        [(digest, sources)] => match (here(digest), sources.len()) {
            (false, _) => Verdict::Ask,
            (true, 1) if claims_pending => Verdict::Wait,
            (true, _) => Verdict::Pass(*digest),
        },
        [(first, most), (_, fewer), ..] if most.len() > fewer.len() => {
            if here(first) {
                Verdict::Pass(*first)
            } else {
                Verdict::Ask
            }
        }
        _ if claims_pending => Verdict::Wait,
        _ if others => Verdict::Ask,
        _ => Verdict::Tie,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: PieceDigest = [1; 32];
    const WRONG: PieceDigest = [2; 32];
    const OTHER: PieceDigest = [3; 32];

    fn votes(votes: &[(SourceId, PieceDigest)]) -> Vec<Vote> {
        let vote = |&(source, digest)| Vote { source, digest };
        votes.iter().map(vote).collect()
    }

    #[test]
    fn two_that_agree_are_believed_and_one_alone_where_nobody_else_can_speak() {
        for (bytes, claims, pending, others, expected) in [
            (
                &[(0, RIGHT)][..],
                &[][..],
                false,
                false,
                Verdict::Pass(RIGHT),
            ),
            (&[(0, RIGHT)], &[], false, true, Verdict::Pass(RIGHT)),
            (&[(0, RIGHT)], &[], true, true, Verdict::Wait),
            (
                &[(0, RIGHT)],
                &[(1, RIGHT)],
                true,
                true,
                Verdict::Pass(RIGHT),
            ),
            (
                &[(0, RIGHT), (1, RIGHT)],
                &[],
                true,
                true,
                Verdict::Pass(RIGHT),
            ),
            // Its own word is no second one.
            (&[(0, WRONG)], &[(0, WRONG)], true, true, Verdict::Wait),
            (&[], &[(1, RIGHT), (2, RIGHT)], false, true, Verdict::Ask),
            (&[], &[], true, true, Verdict::Ask),
        ] {
            let verdict = judge(&votes(bytes), &votes(claims), pending, others);
            assert_eq!(verdict, expected, "{bytes:?} {claims:?} {pending} {others}");
        }
    }

    #[test]
    fn where_two_differ_a_third_decides_and_without_one_nobody_does() {
        for (bytes, claims, pending, others, expected) in [
            (
                &[(0, WRONG)][..],
                &[(1, RIGHT)][..],
                true,
                true,
                Verdict::Wait,
            ),
            (&[(0, WRONG)], &[(1, RIGHT)], false, true, Verdict::Ask),
            (&[(0, WRONG)], &[(1, RIGHT)], false, false, Verdict::Tie),
            (
                &[(0, WRONG)],
                &[(1, RIGHT), (2, RIGHT)],
                false,
                true,
                Verdict::Ask,
            ),
            (
                &[(0, WRONG), (2, RIGHT)],
                &[(1, RIGHT)],
                true,
                true,
                Verdict::Pass(RIGHT),
            ),
            (
                &[(0, RIGHT)],
                &[(1, WRONG), (2, RIGHT)],
                false,
                false,
                Verdict::Pass(RIGHT),
            ),
            (
                &[(0, WRONG), (1, RIGHT), (2, OTHER)],
                &[],
                false,
                false,
                Verdict::Tie,
            ),
        ] {
            let verdict = judge(&votes(bytes), &votes(claims), pending, others);
            assert_eq!(verdict, expected, "{bytes:?} {claims:?} {pending} {others}");
        }
    }
}
