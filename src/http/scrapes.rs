//! One scrape at a time, however many requests ask for one. Without `admin.listen` any peer may ask, and a thread
//! for each request would take the cores from users.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::HeaderMap;
use hyper::header::{ACCEPT, ACCEPT_ENCODING};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

use super::negotiation::weight;
use crate::telemetry::metrics::Exposition;

/// Shares scrapes among requests.
#[derive(Debug)]
pub(crate) struct Scrapes {
    /// Has one permit, which the scrape that runs holds.
    one_at_a_time: Arc<Semaphore>,
    /// Scrapes that have begun.
    begun: Arc<AtomicU64>,
    /// By [`ScrapeForm::index`].
    last: Arc<[Mutex<LastScrape>; FORMS]>,
}

/// The last scrape of a form that has ended.
#[derive(Debug, Default)]
struct LastScrape {
    number: u64,
    body: Bytes,
}

/// The form of a response to a scraper.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScrapeForm {
    pub(super) exposition: Exposition,
    pub(super) is_gzip: bool,
}

/// Two formats, each compressed or not.
const FORMS: usize = 4;

impl ScrapeForm {
    /// The form that a request asks for. Text where it prefers none.
    pub(super) fn asked_for(headers: &HeaderMap) -> Self {
        let [open_metrics, text] = ["application/openmetrics-text", "text/plain"]
            .map(|media_type| weight(headers, &ACCEPT, media_type));
        Self {
            exposition: if open_metrics > 0.0 && open_metrics >= text {
                Exposition::OpenMetrics
            } else {
                Exposition::Text
            },
            is_gzip: weight(headers, &ACCEPT_ENCODING, "gzip") > 0.0,
        }
    }

    fn index(self) -> usize {
        2 * usize::from(self.exposition == Exposition::OpenMetrics) + usize::from(self.is_gzip)
    }

    fn body(self, text: String) -> Bytes {
        if !self.is_gzip {
            return text.into();
        }
        // The lowest level: the network is faster than a better compression.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes())
            .and_then(|()| gzip.finish())
            .expect("writing to memory")
            .into()
    }
}

impl Default for Scrapes {
    fn default() -> Self {
        Self {
            one_at_a_time: Arc::new(Semaphore::new(1)),
            begun: Arc::default(),
            last: Arc::default(),
        }
    }
}

impl Scrapes {
    /// The metrics as they are after this call, as `scrape` gives them. All requests that wait for one form share the
    /// next scrape of this form.
    pub(super) async fn share(
        &self,
        form: ScrapeForm,
        scrape: impl FnOnce() -> String + Send + 'static,
    ) -> Result<Bytes, JoinError> {
        // SeqCst: a scrape that counts as begun later also reads what this request can know.
        let begun_before = self.begun.load(SeqCst);
        let permit = self.one_at_a_time.clone().acquire_owned().await;
        if let LastScrape { number, body } = &*self.last[form.index()].lock()
            && *number > begun_before
        {
            return Ok(body.clone());
        }
        let (begun, last) = (self.begun.clone(), self.last.clone());
        // A scrape walks all users and reads /proc, which must not delay messages on a worker thread. The thread
        // holds the permit, because it goes on when the request is dropped.
        spawn_blocking(move || {
            let number = begun.fetch_add(1, SeqCst) + 1;
            let body = form.body(scrape());
            *last[form.index()].lock() = LastScrape {
                number,
                body: body.clone(),
            };
            drop(permit);
            body
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use futures_util::future::join_all;
    use hyper::header::HeaderValue;

    use super::*;

    const FORM: ScrapeForm = ScrapeForm {
        exposition: Exposition::Text,
        is_gzip: false,
    };

    #[track_caller]
    fn check(accept: &'static str, accept_encoding: &'static str, expected: (Exposition, bool)) {
        let fields = [(ACCEPT, accept), (ACCEPT_ENCODING, accept_encoding)];
        let fields = fields.map(|(name, value)| (name, HeaderValue::from_static(value)));
        let form = ScrapeForm::asked_for(&fields.into_iter().collect());
        assert_eq!((form.exposition, form.is_gzip), expected);
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        let (text, open_metrics) = (Exposition::Text, Exposition::OpenMetrics);
        check("", "", (text, false));
        check("*/*", "identity", (text, false));
        check("text/html, */*", "*", (text, false));
        // As Prometheus 2 and 3 ask.
        check(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "gzip",
            (open_metrics, true),
        );
        check(
            "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5",
            "gzip;q=0, deflate",
            (text, false),
        );
    }

    #[tokio::test]
    async fn requests_of_different_forms_share_nothing() {
        let scrapes = Scrapes::default();
        let forms = [Exposition::Text, Exposition::OpenMetrics]
            .map(|exposition| ScrapeForm { exposition, ..FORM });
        let requests = forms.map(|form| {
            scrapes.share(form, move || {
                format!("{:?}", form.exposition == Exposition::Text)
            })
        });
        let texts = join_all(requests).await;
        let texts: Vec<_> = texts.into_iter().map(Result::unwrap).collect();
        assert_eq!(texts, ["true", "false"]);
    }

    #[tokio::test]
    async fn requests_that_wait_share_one_scrape_that_began_after_them() {
        let (scrapes, event) = (Scrapes::default(), Arc::new(Mutex::new(0)));
        for round in 1..=3 {
            let mut requests: Vec<_> = (0..100)
                .map(|_| {
                    let event = event.clone();
                    Box::pin(scrapes.share(FORM, move || event.lock().to_string()))
                })
                .collect();
            {
                let mut now = event.lock();
                for request in &mut requests {
                    let mut cx = Context::from_waker(Waker::noop());
                    assert!(request.as_mut().poll(&mut cx).is_pending());
                }
                *now = round;
            }
            for text in join_all(requests).await {
                assert_eq!(text.unwrap(), round.to_string());
            }
            // The first may have begun before the others asked.
            assert!(scrapes.begun.load(SeqCst) <= 2 * round);
        }
    }
}
