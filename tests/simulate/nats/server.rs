//! Servers of the model: who subscribes to what, and what passes between servers.

use std::collections::BTreeMap;

use async_nats::Subject;
use bytes::Bytes;

use super::link::Down;
use super::{Event, LinkId, STALE, World};
use crate::cluster::nats::{Incoming, Outgoing};

pub(super) struct Server {
    pub(super) is_running: bool,
    subscriptions: Vec<ServerSubscription>,
    /// What the clients of each other server subscribe to, as far as this one knows.
    interest: BTreeMap<usize, Vec<String>>,
}

#[derive(Clone)]
struct ServerSubscription {
    /// `None`: a stranger.
    link: Option<LinkId>,
    sid: u64,
    pattern: String,
}

/// What one server tells another.
#[derive(Clone)]
pub(super) enum RouteFrame {
    Subscribe(String),
    Unsubscribe(String),
    Message(Incoming),
}

impl Server {
    pub(super) fn running() -> Self {
        Self {
            is_running: true,
            subscriptions: Vec::new(),
            interest: BTreeMap::new(),
        }
    }

    pub(super) fn patterns(&self) -> Vec<String> {
        let patterns = self.subscriptions.iter();
        patterns.map(|one| one.pattern.clone()).collect()
    }
}

/// Whether a subject is one of those that a pattern stands for.
fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

impl World {
    /// A message has come to a server, from a client of it.
    pub(super) fn publish(&mut self, server: usize, from: Option<LinkId>, message: Outgoing) {
        let Outgoing {
            subject,
            reply,
            traceparent,
            tracestate,
            payload,
        } = message;
        let incoming = Incoming {
            subject,
            reply,
            traceparent,
            tracestate,
            payload,
            no_responders: false,
        };
        let mut is_taken = self.deliver(server, &incoming);
        for other in 0..self.servers.len() {
            let interest = self.servers[server].interest.get(&other);
            let is_wanted = interest.is_some_and(|patterns| {
                patterns
                    .iter()
                    .any(|pattern| matches(pattern, &incoming.subject))
            });
            if is_wanted {
                is_taken = true;
                self.push_route(server, other, RouteFrame::Message(incoming.clone()));
            }
        }
        if let (false, Some(link), Some(reply)) = (is_taken, from, incoming.reply) {
            self.say_no_responders(server, link, reply);
        }
    }

    fn say_no_responders(&mut self, server: usize, link: LinkId, reply: Subject) {
        let mut listening = self.servers[server].subscriptions.iter();
        let sid = listening
            .find(|one| one.link == Some(link) && matches(&one.pattern, &reply))
            .map(|one| one.sid);
        if let Some(sid) = sid {
            let told = Incoming {
                subject: reply,
                reply: None,
                traceparent: None,
                tracestate: None,
                payload: Bytes::new(),
                no_responders: true,
            };
            self.push_down(link, Down::Message(sid, told));
        }
    }

    /// Gives a message to the clients of a server; whether there was any.
    fn deliver(&mut self, server: usize, message: &Incoming) -> bool {
        let subscriptions = self.servers[server].subscriptions.iter();
        let matching = subscriptions.filter(|one| matches(&one.pattern, &message.subject));
        let matching: Vec<_> = matching.map(|one| (one.link, one.sid)).collect();
        for (link, sid) in &matching {
            if let Some(link) = link {
                self.push_down(*link, Down::Message(*sid, message.clone()));
            }
        }
        !matching.is_empty()
    }

    pub(super) fn subscribe(&mut self, server: usize, link: LinkId, sid: u64, pattern: String) {
        self.tell_servers(server, &RouteFrame::Subscribe(pattern.clone()));
        self.servers[server].subscriptions.push(ServerSubscription {
            link: Some(link),
            sid,
            pattern,
        });
    }

    pub(super) fn listen(&mut self, pattern: &str) {
        for server in &mut self.servers {
            server.subscriptions.push(ServerSubscription {
                link: None,
                sid: 0,
                pattern: pattern.to_owned(),
            });
        }
    }

    pub(super) fn unsubscribe(&mut self, server: usize, link: LinkId, sid: u64) {
        self.unsubscribe_where(server, |one| one.link == Some(link) && one.sid == sid);
    }

    pub(super) fn unsubscribe_all(&mut self, server: usize, link: LinkId) {
        self.unsubscribe_where(server, |one| one.link == Some(link));
    }

    fn unsubscribe_where(&mut self, server: usize, is_over: impl Fn(&ServerSubscription) -> bool) {
        let subscriptions = &mut self.servers[server].subscriptions;
        let (over, kept) = std::mem::take(subscriptions)
            .into_iter()
            .partition(|one| is_over(one));
        *subscriptions = kept;
        let over: Vec<ServerSubscription> = over;
        for one in over {
            self.tell_servers(server, &RouteFrame::Unsubscribe(one.pattern));
        }
    }

    fn tell_servers(&mut self, server: usize, frame: &RouteFrame) {
        for other in 0..self.servers.len() {
            if other != server && self.servers[other].is_running {
                self.push_route(server, other, frame.clone());
            }
        }
    }

    fn push_route(&mut self, from: usize, to: usize, frame: RouteFrame) {
        let due = self.now + self.random(&self.inner_delay.clone());
        let route = self.routes.entry((from, to)).or_default();
        let due = due.max(route.back().map_or(0, |(last, _)| *last));
        route.push_back((due, frame));
        self.at(due, Event::Route(from, to));
    }

    pub(super) fn flush_route(&mut self, from: usize, to: usize) {
        loop {
            if self.is_cut(from, to) {
                return;
            }
            let Some(route) = self.routes.get_mut(&(from, to)) else {
                return;
            };
            match route.front() {
                Some((due, _)) if *due <= self.now => {}
                _ => return,
            }
            let Some((_, frame)) = route.pop_front() else {
                return;
            };
            let interest = self.servers[to].interest.entry(from).or_default();
            match frame {
                RouteFrame::Subscribe(pattern) => interest.push(pattern),
                RouteFrame::Unsubscribe(pattern) => {
                    if let Some(at) = interest.iter().position(|one| *one == pattern) {
                        interest.swap_remove(at);
                    }
                }
                RouteFrame::Message(message) => {
                    self.deliver(to, &message);
                }
            }
        }
    }

    pub(super) fn is_cut(&self, one: usize, other: usize) -> bool {
        let pair = (one.min(other), one.max(other));
        self.cut_routes.contains_key(&pair)
    }

    pub(super) fn cut_route(&mut self, one: usize, other: usize) {
        self.note(|| format!("cut servers {one} and {other}"));
        let cut = self.next_cut();
        self.cut_routes
            .insert((one.min(other), one.max(other)), cut);
        let patience = self.random(&STALE);
        self.after(
            patience,
            Event::RouteStale(one.min(other), one.max(other), cut),
        );
        self.watch_leader();
    }

    pub(super) fn on_route_stale(&mut self, one: usize, other: usize, cut: u64) {
        if self.cut_routes.get(&(one, other)) == Some(&cut) {
            self.note(|| format!("servers {one} and {other} give each other up"));
            self.forget_route(one, other);
        }
    }

    fn forget_route(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            self.routes.remove(&(from, to));
            self.servers[to].interest.remove(&from);
        }
    }

    pub(super) fn heal_route(&mut self, one: usize, other: usize) {
        self.note(|| format!("heal servers {one} and {other}"));
        self.cut_routes.remove(&(one.min(other), one.max(other)));
        self.join_route(one, other);
        self.flush_route(one, other);
        self.flush_route(other, one);
        self.retry_stalled();
    }

    /// Two servers tell each other what their clients subscribe to, unless they know.
    fn join_route(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            let knows = self.servers[to].interest.contains_key(&from);
            if !knows && self.servers[from].is_running && self.servers[to].is_running {
                self.servers[to].interest.insert(from, Vec::new());
                for pattern in self.servers[from].patterns() {
                    self.push_route(from, to, RouteFrame::Subscribe(pattern));
                }
            }
        }
    }

    pub(super) fn stop_server(&mut self, server: usize, loses_power: bool) {
        self.note(|| format!("stop server {server}, loses power: {loses_power}"));
        self.servers[server].is_running = false;
        let links = self.links.iter();
        let links: Vec<_> = links
            .filter(|(_, ends)| ends.server == server)
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            self.end_at_server(link);
        }
        self.servers[server]
            .subscriptions
            .retain(|one| one.link.is_none());
        for other in 0..self.servers.len() {
            if other != server {
                self.forget_route(server, other);
            }
        }
        // The others of a cluster have what this one has not on its disk.
        if loses_power && self.servers.len() == 1 {
            let share = self.rng.usize(..8);
            self.jetstream.lose_last(share);
        }
        self.watch_leader();
    }

    pub(super) fn start_server(&mut self, server: usize) {
        self.note(|| format!("start server {server}"));
        self.servers[server].is_running = true;
        for other in 0..self.servers.len() {
            if other != server && !self.is_cut(server, other) {
                self.join_route(server, other);
            }
        }
        self.retry_stalled();
    }
}
