//! Many hosts with their discovery on a virtual clock: one asks for a closure as Nix would, and
//! what that costs and finds is printed. Nothing is sent: no root, no network.
//!
//! `cargo run --release --example simulate -- --peers 100 --paths 5000 --loss 5`

#![expect(clippy::expect_used, reason = "the simulation is made for tests")]

#[expect(dead_code, reason = "made for the tests, which use all of it")]
#[path = "../support/simulated_lan/mod.rs"]
mod simulated_lan;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use simulated_lan::{
    Lan,
    closure::{self, Mix},
    gateway::Gateway,
    host::Speech,
    report::Report,
    weather::Weather,
};

/// The closure of one Nix on a simulated LAN of peers.
#[derive(Debug, Clone, Parser)]
#[command(name = "simulate")]
struct Options {
    /// Peers beside the asker, up to 200 in each /24.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..50_000))]
    peers: u32,

    /// Paths that are asked for.
    #[arg(long, default_value_t = 5_000)]
    paths: u32,

    /// Percent of the datagrams that are lost.
    #[arg(long, default_value_t = 0)]
    loss: u64,

    /// Percent of the datagrams that arrive twice.
    #[arg(long, default_value_t = 0)]
    duplicates: u64,

    /// Percent that may overtake those before them.
    #[arg(long, default_value_t = 0)]
    reordered: u64,

    /// Where the drawing of everything begins: the same number gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Percent of the peers that sleep; each needs 20 to 400 ms to wake up.
    #[arg(long, default_value_t = 0)]
    sleeping: u64,

    /// Peers among them that speak only the first protocol.
    #[arg(long, default_value_t = 0)]
    old: u32,

    /// Paths that are asked for at once.
    #[arg(long, default_value_t = 25)]
    parallel: usize,

    /// A datagram takes 100 µs, and up to so many more.
    #[arg(long, default_value_t = 200)]
    delay_us: u64,

    /// Percent of the paths that nobody has.
    #[arg(long, default_value_t = 20)]
    missing: u64,

    /// Percent of the paths that exactly one peer has. The others are popular.
    #[arg(long, default_value_t = 30)]
    rare: u64,

    /// Percent of the popular paths that a peer has on average; each has between half and one
    /// and a half of it.
    #[arg(long, default_value_t = 60)]
    share: u64,

    /// Fetch no summaries.
    #[arg(long)]
    no_summaries: bool,

    /// Fail if less than 99.9 % of what awake peers hold is found, if lookups need more than 2
    /// datagrams, or if the p99 of misses that summaries cover is over 1 ms and a round trip.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let report = simulate(&options);
    println!("{report}");
    let broken = report.broken();
    for limit in &broken {
        println!("LIMIT      {limit}");
    }
    if options.check && !broken.is_empty() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn simulate(options: &Options) -> Report {
    let weather = Weather {
        loss: options.loss,
        duplicates: options.duplicates,
        delay: Duration::from_micros(options.delay_us),
        reordered: options.reordered,
    };
    let mut lan = Lan::new(options.seed, weather);
    let asker = lan.add_new([]);
    let mix = Mix {
        missing: options.missing,
        rare: options.rare,
        share: options.share,
    };
    let hands = mix.deal(&mut lan.draws, options.peers as usize, options.paths);
    for (number, hand) in (0..).zip(hands) {
        if number < options.old {
            lan.add(Speech::Old, hand);
        } else if lan.draws.percent(options.sleeping) {
            let boot = Duration::from_millis(20 + lan.draws.below(380));
            lan.add_asleep(boot, hand);
        } else {
            lan.add_new(hand);
        }
    }
    let order = closure::order(&mut lan.draws, options.paths);
    let mut gateway = Gateway::new(&mut lan, asker, order, options.parallel);
    gateway.has_summaries = !options.no_summaries;
    gateway.run(&mut lan, usize::MAX);
    Report::of(&lan, &gateway)
}
