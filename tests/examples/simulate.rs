//! Many hosts with their discovery on a virtual clock: one asks for a closure as Nix would, and
//! what that costs and finds is printed. Nothing is sent: no root, no network.
//!
//! `cargo run --release --example simulate -- --peers 100 --paths 5000 --loss 5` simulates one
//! LAN; `--table` all that have limits.

#![expect(clippy::expect_used, reason = "the simulation is made for tests")]

#[expect(dead_code, reason = "made for the tests, which use all of it")]
#[path = "../support/simulated_lan/mod.rs"]
mod simulated_lan;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use simulated_lan::{
    closure::Mix,
    gateway::{PAUSE, Pace},
    report::{Limits, Report},
    scenarios::{self, Scenario},
    weather::Weather,
};

/// The closure of one Nix on a simulated LAN of peers.
#[derive(Debug, Clone, Parser)]
#[command(name = "simulate")]
struct Options {
    /// Simulate all LANs that have limits, one line each; the other options are of no effect.
    #[arg(long)]
    table: bool,

    /// Only those of the table whose names contain this.
    #[arg(long, default_value = "")]
    only: String,

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

    /// Percent of the peers that sleep; each needs 20 to 250 ms to wake up.
    #[arg(long, default_value_t = 0)]
    sleeping: u64,

    /// Peers among them that speak only the first protocol.
    #[arg(long, default_value_t = 0)]
    old: u32,

    /// Paths that are asked for at once.
    #[arg(long, default_value_t = 25)]
    parallel: usize,

    /// Ask for all of these in the same moment, and for the next when all were answered.
    #[arg(long)]
    in_step: bool,

    /// The least time that a datagram takes.
    #[arg(long, default_value_t = 100)]
    delay_us: u64,

    /// A datagram may take so much more.
    #[arg(long, default_value_t = 100)]
    jitter_us: u64,

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

    /// Fail if a limit is broken; for one LAN: if less than 99.9 % is found.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let scenarios = if options.table {
        scenarios::all()
    } else {
        vec![scenario(&options)]
    };
    let mut is_broken = false;
    println!("{:44}{}", "", Report::HEAD);
    for scenario in scenarios {
        if !scenario.name.contains(&options.only) {
            continue;
        }
        let report = scenario.run();
        println!("{:44}{report}", scenario.name);
        if !options.table {
            for (name, count) in &report.by_type {
                println!("{name:>44}{count:10}");
            }
        }
        for limit in report.broken(&scenario.limits) {
            is_broken = true;
            println!("LIMIT {limit}");
        }
    }
    if options.check && is_broken {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn scenario(options: &Options) -> Scenario {
    Scenario {
        name: format!("{} peers, loss {} %", options.peers, options.loss),
        weather: Weather {
            loss: options.loss,
            duplicates: options.duplicates,
            delay: Duration::from_micros(options.delay_us),
            jitter: Duration::from_micros(options.jitter_us),
            reordered: options.reordered,
        },
        peers: options.peers as usize,
        paths: options.paths,
        mix: Mix {
            missing: options.missing,
            rare: options.rare,
            share: options.share,
        },
        pace: if options.in_step {
            Pace::Rounds(options.parallel)
        } else {
            Pace::Connections(options.parallel, PAUSE)
        },
        seed: options.seed,
        sleeping: options.sleeping,
        old: options.old as usize,
        limits: Limits {
            found: Some(999.0),
            ..Limits::default()
        },
        ..Scenario::default()
    }
}
