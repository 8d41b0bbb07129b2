//! `forrest-simulate`: simulated days of a hostile world, and the core's speed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use forrest_simulate::campaign::{Campaign, Summary, THREADS_MAX, live};
use forrest_simulate::world::Tracing;
use indicatif::{ProgressBar, ProgressStyle};

/// Lives through simulated days of a hostile world and checks that every promise is kept.
///
/// A seed decides everything. A day that breaks a promise is printed, and can be lived again:
///
///     forrest-simulate --first-seed 4711 --seeds 1 --trace
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How many seeds to live through.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How long each seed's faults go on, in days.
    #[arg(long, default_value_t = 1.0)]
    days: f64,
    /// Threads, at most 2.
    #[arg(long, default_value_t = THREADS_MAX)]
    threads: usize,
    /// Tell each day as a story, line by line.
    #[arg(long)]
    trace: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure the core's speed and print it as JSON.
    Bench,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.verb {
        Some(Verb::Bench) => print_json(&forrest_simulate::bench::measure()),
        None if arguments.trace => tell(&arguments),
        None => campaign(&arguments),
    }
}

fn print_json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string(value) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failed to write the result as JSON: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell(arguments: &Arguments) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for seed in arguments.first_seed..arguments.first_seed + arguments.seeds {
        println!("seed {seed}");
        let outcome = live(seed, arguments.days, Tracing::Print);
        match outcome.failure {
            Some(failure) => {
                println!("BROKEN: {}", failure.what);
                code = ExitCode::FAILURE;
            }
            None => println!("kept: {:?}", outcome.tally),
        }
    }
    code
}

fn campaign(arguments: &Arguments) -> ExitCode {
    let campaign = Campaign {
        first_seed: arguments.first_seed,
        seeds: arguments.seeds,
        days: arguments.days,
        threads: arguments.threads,
    };
    let bar = ProgressBar::new(arguments.seeds);
    let style = "{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let summary = campaign.run(|done| bar.set_position(done));
    bar.finish_and_clear();
    if arguments.json {
        let code = print_json(&summary);
        return if summary.failures.is_empty() { code } else { ExitCode::FAILURE };
    }
    report(&summary, arguments)
}

fn report(summary: &Summary, arguments: &Arguments) -> ExitCode {
    println!(
        "{} seeds from {} on in {:.1} s: {:.1} seeds/s; {} events, {} commands, {} jobs, {} virtual \
         machines, {} promotions, {} daemons killed; all jobs served {} s after the faults at the latest, beside the jobs' own \
         time, and at rest after {} s",
        summary.seeds,
        summary.first_seed,
        summary.seconds,
        summary.seeds_per_s,
        summary.events,
        summary.commands,
        summary.jobs,
        summary.guests,
        summary.promotions,
        summary.crashes,
        summary.served_s_max,
        summary.rest_s_max,
    );
    let Some((seed, _)) = summary.failures.first() else {
        println!("every promise was kept");
        return ExitCode::SUCCESS;
    };
    for (seed, what) in &summary.failures {
        println!("seed {seed}: BROKEN: {what}");
    }
    println!("the end of seed {seed}'s day:");
    if let Some(failure) = live(*seed, arguments.days, Tracing::Tail).failure {
        let skip = failure.tail.len().saturating_sub(40);
        for line in failure.tail.iter().skip(skip) {
            println!("  {line}");
        }
    }
    println!(
        "live it again: forrest-simulate --first-seed {seed} --seeds 1 --days {} --trace",
        arguments.days
    );
    ExitCode::FAILURE
}
