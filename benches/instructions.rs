//! Counts the instructions of each step of a message, by callgrind. The counts are the same in every run, so
//! that a change of a few percent shows. `tests/instructions` compares them with baseline.txt.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::exit,
    reason = "gungraun's macros generate such code"
)]

mod parts;

use std::hint::black_box;
use std::sync::Arc;

use gungraun::prelude::*;
use parts::{FullRoom, Ids, Joiner, Mail, Pair, RECIPIENT, frames, plain, turned, user, with_id};
use switchboard::directory::{Client, Directory};
use switchboard::protocol::{Dialect, Outbound, Status, decode, push_frame};

/// Repetitions of each step, so that its count outweighs the code around it.
const TIMES: u64 = 100;

#[library_benchmark]
#[bench::short_32(plain(2, 32))]
#[bench::short_1024(plain(2, 1024))]
#[bench::short_id_32(with_id(2, 32))]
#[bench::general_32(turned(2, 32))]
#[bench::general_1024(turned(2, 1024))]
fn decoding(text: String) -> u64 {
    (0..TIMES).fold(0, |sum, _| {
        let inbound = decode(black_box(&text), Dialect::V1);
        sum + inbound.map_or(0, |inbound| inbound.recipient.get())
    })
}

fn text(bytes: usize) -> (Vec<u8>, String) {
    (
        Vec::with_capacity(4096),
        format!("\"{}\"", "x".repeat(bytes)),
    )
}

#[library_benchmark]
#[bench::bytes_32(text(32))]
#[bench::bytes_1024(text(1024))]
fn encoding_a_message((mut buffer, message): (Vec<u8>, String)) -> Vec<u8> {
    for _ in 0..TIMES {
        buffer.clear();
        let outbound = Outbound::Message {
            sender_id: user(1).into(),
            message: black_box(&message),
            trace: "",
        };
        push_frame(&mut buffer, Dialect::V1, outbound);
    }
    buffer
}

#[library_benchmark]
#[bench::delivered(text(0))]
fn encoding_an_outcome((mut buffer, _): (Vec<u8>, String)) -> Vec<u8> {
    for _ in 0..TIMES {
        buffer.clear();
        let outbound = Outbound::Outcome {
            id: black_box("7"),
            status: Status::Delivered,
        };
        push_frame(&mut buffer, Dialect::V1, outbound);
    }
    buffer
}

/// Users in the directory: enough that it has several segments.
const USERS: u64 = 10_000;

/// A directory, and clients that have not joined it yet.
type Populated = (Directory, Vec<Arc<Client>>);

fn populated() -> Populated {
    let joiner = Joiner::new();
    let directory = Directory::new();
    for id in 1..=USERS {
        directory.join(&joiner.client(id));
    }
    let clients: Vec<_> = (1..=TIMES)
        .map(|more| joiner.client(USERS + more))
        .collect();
    // The first join of a thread makes arc-swap set up its state of the thread.
    directory.join(&clients[0]);
    directory.leave(&clients[0]);
    (directory, clients)
}

#[library_benchmark]
#[bench::of_10_000(populated())]
fn lookup(users: Populated) -> Populated {
    let (directory, _) = &users;
    let mut ids = Ids::up_to(USERS);
    for _ in 0..TIMES {
        let id = user(black_box(ids.next()));
        assert!(directory.with(id, |client| client.is_some()));
    }
    users
}

#[library_benchmark]
#[bench::of_10_000(populated())]
fn join_and_leave(users: Populated) -> Populated {
    let (directory, clients) = &users;
    for client in black_box(clients) {
        directory.join(client);
        directory.leave(client);
    }
    users
}

#[library_benchmark]
#[bench::one_by_one(Mail::new(32), 1)]
#[bench::by_32(Mail::new(32), 32)]
fn push_and_take(mut mail: Mail, at_once: u32) -> Mail {
    for _ in 0..TIMES {
        assert!(mail.pass(black_box(at_once)) > 0);
    }
    mail
}

#[library_benchmark]
#[bench::full_mailbox(FullRoom::new(64 << 10))]
#[bench::no_room(FullRoom::new(56 << 10))]
fn refusing(mut room: FullRoom) -> FullRoom {
    for _ in 0..TIMES {
        room.push(black_box(7));
    }
    room
}

fn pair(dialect: Dialect, text: &str, count: usize) -> (Pair, Vec<u8>) {
    let mut pair = Pair::new(dialect);
    let frames = frames(text, count);
    // Every buffer gets its size.
    pair.pass(&frames);
    (pair, frames)
}

#[library_benchmark]
#[bench::bare_32(pair(Dialect::Bare, &plain(RECIPIENT, 32), 1))]
#[bench::bare_32_by_64(pair(Dialect::Bare, &plain(RECIPIENT, 32), 64))]
#[bench::bare_1024(pair(Dialect::Bare, &plain(RECIPIENT, 1024), 1))]
#[bench::with_outcome_32(pair(Dialect::V1, &with_id(RECIPIENT, 32), 1))]
fn end_to_end((mut pair, frames): (Pair, Vec<u8>)) -> Pair {
    for _ in 0..TIMES {
        assert!(pair.pass(black_box(&frames)) > 0);
    }
    pair
}

library_benchmark_group!(
    name = protocol,
    benchmarks = [decoding, encoding_a_message, encoding_an_outcome]
);
library_benchmark_group!(name = directory, benchmarks = [lookup, join_and_leave]);
library_benchmark_group!(name = mailbox, benchmarks = [push_and_take, refusing]);
library_benchmark_group!(name = session, benchmarks = end_to_end);

/// glibc chooses its copy and compare functions by the processor. Without these features it chooses the same on
/// every x86-64 processor, and so do the counts.
const PLAIN_X86: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM";

main!(
    config = LibraryBenchmarkConfig::default().env("GLIBC_TUNABLES", PLAIN_X86),
    library_benchmark_groups = [protocol, directory, mailbox, session]
);
