//! Runs the target `forwarded_for` of ../targets.rs under cargo-fuzz.
#![no_main]
#![allow(dead_code, reason = "this binary uses one function of targets.rs")]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::forwarded_for(bytes));
