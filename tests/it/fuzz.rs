//! The fuzz targets as a plain test: the corpora are replayed, and mutated for a while. The longer
//! runs are by cargo-fuzz, in tests/fuzz.

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets.rs"]
mod targets;

use targets::TARGETS;

/// Mutations of each corpus; `SWITCHBOARD_FUZZ_RUNS` asks for more.
const RUNS: u32 = 2000;
/// The largest input, bytes.
const INPUT_BYTES_MAX: usize = 4096;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(folder.join(target)).expect("a corpus for each target");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has a corpus");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Changes an input in a few places, as others in the corpus have it or at random.
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
fn corpora_and_what_is_like_them_break_nothing() {
    let runs = std::env::var("SWITCHBOARD_FUZZ_RUNS").ok();
    let runs = runs.map_or(RUNS, |runs| runs.parse().expect("a number of runs"));
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        for input in &corpus {
            target(input);
        }
        // The same inputs each time, so that what fails once fails again.
        let mut random = fastrand::Rng::with_seed(7);
        for run in 0..runs {
            let input = corpus[random.usize(0..corpus.len())].clone();
            let input = mutate(input, &corpus, &mut random);
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name}, run {run}: {input:?}");
        }
    }
}
