//! Times each step of a message.

mod parts;

use std::hint::black_box;
use std::time::Duration;
use std::{env, fs};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use data_encoding::BASE64URL_NOPAD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use parts::{FullRoom, Ids, Joiner, Mail, Pair, RECIPIENT, frames, plain, turned, user, with_id};
use switchboard::auth::{self, Auth};
use switchboard::config::{self, AuthMode, Secret, Settings};
use switchboard::directory::Directory;
use switchboard::protocol::{Dialect, Outbound, Status, decode, push_frame};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .configure_from_args();
    decoding(&mut criterion);
    encoding(&mut criterion);
    mailbox(&mut criterion);
    refusal(&mut criterion);
    end_to_end(&mut criterion);
    lookup(&mut criterion);
    join_and_leave(&mut criterion);
    tokens(&mut criterion);
    criterion.final_summary();
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, text) in [
        ("short/32", plain(2, 32)),
        ("short/1024", plain(2, 1024)),
        ("short_id/32", with_id(2, 32)),
        ("general/32", turned(2, 32)),
        ("general/1024", turned(2, 1024)),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| decode(black_box(&text), Dialect::V1).is_ok());
        });
    }
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let texts = [32, 1024].map(|bytes| format!("\"{}\"", "x".repeat(bytes)));
    let message = |message| Outbound::Message {
        sender_id: user(1).into(),
        message,
        trace: "",
    };
    let outcome = Outbound::Outcome {
        id: "7",
        status: Status::Delivered,
    };
    for (name, outbound) in [
        ("message/32", message(&texts[0])),
        ("message/1024", message(&texts[1])),
        ("outcome", outcome),
    ] {
        let mut buffer = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                buffer.clear();
                push_frame(&mut buffer, Dialect::V1, black_box(outbound));
                buffer.len()
            });
        });
    }
}

fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");
    for count in [1, 32] {
        let mut mail = Mail::new(32);
        group.throughput(Throughput::Elements(count.into()));
        group.bench_function(BenchmarkId::new("push_take", count), |bencher| {
            bencher.iter(|| mail.pass(black_box(count)));
        });
    }
}

/// Times a message that finds its mailbox full, and one that finds the bytes of all mailboxes used up by mailboxes as
/// large as its own.
fn refusal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("refuse");
    for (name, bytes) in [("full_mailbox", 64 << 10), ("no_room", 56 << 10)] {
        let mut room = FullRoom::new(bytes);
        group.bench_function(name, |bencher| bencher.iter(|| room.push(black_box(7))));
    }
}

fn end_to_end(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("end_to_end");
    for (name, dialect, text, count) in [
        ("bare/32", Dialect::Bare, plain(RECIPIENT, 32), 1),
        (
            "bare/32 64_at_once",
            Dialect::Bare,
            plain(RECIPIENT, 32),
            64,
        ),
        ("bare/1024", Dialect::Bare, plain(RECIPIENT, 1024), 1),
        ("v1_outcome/32", Dialect::V1, with_id(RECIPIENT, 32), 1),
    ] {
        let mut pair = Pair::new(dialect);
        let frames = frames(&text, count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| pair.pass(black_box(&frames)));
        });
    }
}

/// Ids of the lookup that finds everything in the processor's cache.
const HOT: u64 = 64;

fn lookup(criterion: &mut Criterion) {
    let joiner = Joiner::new();
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let directory = Directory::new();
        for id in 1..=count {
            directory.join(&joiner.client(id));
        }
        for (name, among) in [("lookup_hot", HOT), ("lookup_random", count)] {
            let mut group = criterion.benchmark_group(name);
            let mut ids = Ids::up_to(among);
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    let id = ids.next();
                    directory.with(user(id), |client| client.map(|client| client.id()))
                });
            });
        }
    }
}

fn join_and_leave(criterion: &mut Criterion) {
    let joiner = Joiner::new();
    for count in [1_000, 1_000_000] {
        let directory = Directory::new();
        for id in 1..=count {
            directory.join(&joiner.client(id));
        }
        let mut newest = count;
        let mut group = criterion.benchmark_group("join_leave");
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_batched(
                || {
                    newest += 1;
                    joiner.client(newest)
                },
                |client| {
                    directory.join(&client);
                    directory.leave(&client);
                    client
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// Times the check of a token against eight keys without a key id: a token that the last key signed, and a forged
/// one with a long header.
fn tokens(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let base64 = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let keys =
        (1..=8_u8).map(|byte| format!("{{\"kty\":\"oct\",\"k\":\"{}\"}}", base64(&[byte; 32])));
    let keys = format!("{{\"keys\":[{}]}}", keys.collect::<Vec<_>>().join(","));
    let file = env::temp_dir().join(format!("switchboard-bench-{}", std::process::id()));
    fs::write(&file, keys).expect("a file of keys");
    let settings = config::AuthSettings {
        mode: AuthMode::Jwt,
        jwks_file: Some(file.clone()),
        ..Settings::default().auth
    };
    let (auth, _) = runtime.block_on(Auth::load(&settings)).expect("keys");
    fs::remove_file(&file).expect("a file of keys");
    let hour = Duration::from_hours(1);
    let good = auth::issue(&settings, &Secret::new(&[8; 32]), "alice", hour).expect("a token");
    let more: Vec<_> = (0..600)
        .map(|member| format!(",\"{member:03}\":0"))
        .collect();
    let more = more.concat();
    let head = base64(format!("{{\"alg\":\"HS256\"{more}}}").as_bytes());
    let guess = format!("{head}.{}.{}", base64(b"{}"), "A".repeat(43));
    let mut group = criterion.benchmark_group("token");
    for (name, token, admitted) in [("good", good, true), ("guess/long", guess, false)] {
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {token}").parse().expect("a header");
        headers.insert(AUTHORIZATION, value);
        let admit = || runtime.block_on(auth.authenticate(&headers, None)).is_ok();
        assert_eq!(admit(), admitted, "{name}");
        group.bench_function(name, |bencher| bencher.iter(admit));
    }
}
