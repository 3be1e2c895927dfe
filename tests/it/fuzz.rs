//! Runs the fuzz targets with their corpora and with mutations of them. tests/fuzz is for longer runs, with
//! cargo-fuzz.

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets.rs"]
mod targets;

use targets::TARGETS;

/// The number of mutations of each corpus; `SWITCHBOARD_FUZZ_RUNS` changes it.
const RUNS: u32 = 2000;
/// The largest input, in bytes.
const INPUT_BYTES_MAX: usize = 4096;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(folder.join(target)).expect("each target has a folder of inputs");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "the corpus of {target} is empty");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Changes an input in a few places: at random, or with bytes of another input of the corpus.
fn mutate(mut input: Vec<u8>, corpus: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    for _ in 0..=random.usize(0..4) {
        let at = random.usize(0..=input.len());
        match random.u8(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 if at < input.len() => {
                let end = (at + 1 + random.usize(0..8)).min(input.len());
                input.drain(at..end);
            }
            3 => input.insert(at, random.u8(..)),
            4 => {
                let bytes = b"\0\x01\x7e\x7f\x80\x81\x88\xfe\xff\"\\{}[]:,. -=;e9";
                input.insert(at, bytes[random.usize(0..bytes.len())]);
            }
            5 => {
                let other = &corpus[random.usize(0..corpus.len())];
                let from = random.usize(0..=other.len());
                let end = (from + random.usize(0..64)).min(other.len());
                input.splice(at..at, other[from..end].iter().copied());
            }
            _ => input.truncate(at),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

#[test]
fn corpora_and_their_mutations_cause_no_panic() {
    let runs = std::env::var("SWITCHBOARD_FUZZ_RUNS").ok();
    let runs = runs.map_or(RUNS, |runs| {
        runs.parse().expect("SWITCHBOARD_FUZZ_RUNS is a number")
    });
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        for input in &corpus {
            target(input);
        }
        // A fixed seed, so that a failure is reproducible.
        let mut random = fastrand::Rng::with_seed(7);
        for run in 0..runs {
            let input = corpus[random.usize(0..corpus.len())].clone();
            let input = mutate(input, &corpus, &mut random);
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name}, run {run}: {input:?}");
        }
    }
}
