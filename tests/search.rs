//! Searches for plans: by the caller's fitness, within a budget, reproducible with the same seed.

use std::sync::atomic::{AtomicUsize, Ordering};

use arrowquant::plan::{Generation, Plan};
use arrowquant::run::{self, Evolution, Fitness, Options, Search};
use arrowquant::source;

use crate::common::*;

const SETTINGS: &[(&str, &str)] = &[("avg_bits", "3"), ("seed", "5")];

fn evolve(
    settings: &[(&str, &str)],
    search: Search<'_>,
    threads: usize,
) -> arrowquant::error::Result<Evolution> {
    let source = source::open(&demo_model("mdlm-python.safetensors")).unwrap();
    let options = Options {
        threads,
        ..Options::default()
    };
    run::evolve(source.as_ref(), &config(settings), search, options)
}

/// Returns a fitness with interacting layers: errors of consecutive layers multiply.
fn worth(plan: &Plan) -> f64 {
    let error = |entry: &arrowquant::plan::PlanEntry| match entry.recipe {
        Some(recipe) => (-(recipe.format().spec().bits as f64)).exp2(),
        None => 0.0,
    };
    let weights = plan
        .entries
        .iter()
        .filter(|e| e.tensor.shape.dims().len() > 1);
    let errors: Vec<f64> = weights.map(error).collect();
    -errors.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>()
}

fn search<'a>() -> Search<'a> {
    Search {
        population: 20,
        generations: 8,
        ..Search::default()
    }
}

#[test]
fn better_than_the_budget_where_layers_interact_and_within_it() {
    let mut fitness = worth;
    let found = evolve(
        SETTINGS,
        Search {
            fitness: Fitness::Serial(&mut fitness),
            population: 30,
            generations: 40,
            ..search()
        },
        1,
    )
    .unwrap();
    assert!(
        found.fitness > 0.98 * found.start.unwrap(),
        "{} {:?}",
        found.fitness,
        found.start
    );
    assert!((found.fitness - worth(&found.plan)).abs() < 1e-12);
    assert!(
        found
            .history
            .iter()
            .all(|generation| generation.bytes <= found.limit)
    );
    let open = found
        .plan
        .entries
        .iter()
        .filter(|e| e.reason.starts_with("search"));
    let bytes: usize = open.map(|entry| entry.bytes()).sum();
    assert_eq!(bytes as u64, found.history.last().unwrap().bytes);
    assert_eq!(found.history.len(), 41);
    assert!(!found.stopped && !found.additive);
}

#[test]
fn the_same_history_on_one_and_two_threads() {
    let run = |threads| {
        let calls = AtomicUsize::new(0);
        let fitness = |plan: &Plan| {
            calls.fetch_add(1, Ordering::Relaxed);
            worth(plan)
        };
        let search = Search {
            fitness: Fitness::Parallel(&fitness),
            ..search()
        };
        let found = evolve(SETTINGS, search, threads).unwrap();
        (found.to_json(), found.plan.to_json(), calls.into_inner())
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(one, two);
    // Every call is counted, and no candidate is tried twice.
    let tried = one.0["generations"].as_array().unwrap().last().unwrap()["evaluations"].as_u64();
    assert_eq!(tried, Some(one.2 as u64));
    let other = evolve(&[("avg_bits", "3"), ("seed", "6")], search(), 1).unwrap();
    assert_ne!(one.0["generations"], other.to_json()["generations"]);
}

#[test]
fn goes_on_from_a_checkpoint_as_if_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("search.json");
    let mut fitness = worth;
    let whole = evolve(
        SETTINGS,
        Search {
            fitness: Fitness::Serial(&mut fitness),
            ..search()
        },
        1,
    )
    .unwrap();
    let part = |stop_after: usize, resume: bool| {
        let mut fitness = worth;
        let mut told = |generation: &Generation| generation.generation < stop_after;
        let search = Search {
            fitness: Fitness::Serial(&mut fitness),
            checkpoint: Some(checkpoint.clone()),
            resume,
            told: Some(&mut told),
            ..search()
        };
        evolve(SETTINGS, search, 1)
    };
    let first = part(3, false).unwrap();
    assert!(first.stopped && first.history.len() == 4);
    let second = part(100, true).unwrap();
    assert_eq!(second.to_json(), whole.to_json());
    assert_eq!(second.plan, whole.plan);
    // The checkpoint belongs to this search only.
    let mut fitness = worth;
    let search = Search {
        fitness: Fitness::Serial(&mut fitness),
        checkpoint: Some(checkpoint.clone()),
        resume: true,
        ..search()
    };
    let message = evolve(&[("avg_bits", "3"), ("seed", "6")], search, 1)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("search.json") && message.contains("of another search"),
        "{message}"
    );
}

#[test]
fn a_fitness_can_end_it() {
    let mut left = 30;
    let mut fitness = |plan: &Plan| {
        left -= 1;
        if left > 0 {
            worth(plan)
        } else {
            f64::NEG_INFINITY
        }
    };
    let found = evolve(
        SETTINGS,
        Search {
            fitness: Fitness::Serial(&mut fitness),
            ..search()
        },
        1,
    )
    .unwrap();
    assert!(found.stopped && found.fitness >= found.start.unwrap());
    let mut fitness = |_: &Plan| f64::NAN;
    let search = Search {
        fitness: Fitness::Serial(&mut fitness),
        ..search()
    };
    let message = evolve(SETTINGS, search, 1).unwrap_err().to_string();
    assert!(
        message.contains("fitness: a candidate's is NaN"),
        "{message}"
    );
}

#[test]
fn errors_add_up_so_that_the_budget_is_best_already() {
    let found = evolve(SETTINGS, search(), 1).unwrap();
    assert!(found.additive);
    assert_eq!(Some(found.fitness), found.start);
    // Without a budget, the limit is the size of the settings' plan.
    let free = evolve(&[("bit_width", "4")], search(), 1).unwrap();
    let own = run::plan(
        source::open(&demo_model("mdlm-python.safetensors"))
            .unwrap()
            .as_ref(),
        &config(&[("bit_width", "4")]),
    );
    assert!(free.plan.total_bytes() <= own.unwrap().total_bytes());
}

#[cfg(unix)]
#[test]
fn the_program_asks_a_command_what_plans_are_worth() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, chart) = (
        folder.path().join("plan.json"),
        folder.path().join("chart.png"),
    );
    let model = demo_model("dit-digits.safetensors");
    // More tensors of 4 bits are better.
    let command = "grep -c '\"int4\"' {} || true";
    let text = arrowquant_ok([
        "evolve".as_ref(),
        model.as_os_str(),
        plan.as_os_str(),
        "--avg-bits=3".as_ref(),
        "--bits=4".as_ref(),
        "--candidates=int2:128,int4:128".as_ref(),
        "--population=6".as_ref(),
        "--generations=2".as_ref(),
        "--json".as_ref(),
        "--fitness".as_ref(),
        command.as_ref(),
        "--chart".as_ref(),
        chart.as_os_str(),
    ]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let text = std::fs::read_to_string(&plan).unwrap();
    assert_eq!(
        found["fitness"].as_f64().unwrap() as usize,
        text.matches("\"int4\"").count()
    );
    assert!(std::fs::read(chart).unwrap().starts_with(b"\x89PNG"));
    let output = folder.path().join("out.parquet");
    arrowquant_ok([
        "quantize".as_ref(),
        model.as_os_str(),
        output.as_os_str(),
        "--quiet".as_ref(),
        "--plan".as_ref(),
        plan.as_os_str(),
    ]);
    let failing = arrowquant([
        "evolve".as_ref(),
        model.as_os_str(),
        plan.as_os_str(),
        "--fitness".as_ref(),
        "echo nothing".as_ref(),
    ]);
    assert!(stderr(&failing).contains("--fitness 'echo nothing' printed no number"));
    assert_eq!(failing.status.code(), Some(1));
}
