//! One scrape at a time, however many requests ask for one. Without `admin.listen` any peer may ask, and a thread
//! for each request would take the cores from users.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

/// Shares scrapes among requests.
#[derive(Debug)]
pub(crate) struct Scrapes {
    /// Has one permit, which the scrape that runs holds.
    one_at_a_time: Arc<Semaphore>,
    /// Scrapes that have begun.
    begun: Arc<AtomicU64>,
    last: Arc<Mutex<LastScrape>>,
}

/// The last scrape that has ended.
#[derive(Debug, Default)]
struct LastScrape {
    number: u64,
    text: Bytes,
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
    /// The metrics as they are after this call, as `scrape` gives them. All requests that wait share the next
    /// scrape.
    pub(super) async fn share(
        &self,
        scrape: impl FnOnce() -> String + Send + 'static,
    ) -> Result<Bytes, JoinError> {
        // SeqCst: a scrape that counts as begun later also reads what this request can know.
        let begun_before = self.begun.load(SeqCst);
        let permit = self.one_at_a_time.clone().acquire_owned().await;
        if let LastScrape { number, text } = &*self.last.lock()
            && *number > begun_before
        {
            return Ok(text.clone());
        }
        let (begun, last) = (self.begun.clone(), self.last.clone());
        // A scrape walks all users and reads /proc, which must not delay messages on a worker thread. The thread
        // holds the permit, because it goes on when the request is dropped.
        spawn_blocking(move || {
            let number = begun.fetch_add(1, SeqCst) + 1;
            let text = Bytes::from(scrape());
            *last.lock() = LastScrape {
                number,
                text: text.clone(),
            };
            drop(permit);
            text
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn requests_that_wait_share_one_scrape_that_began_after_them() {
        let (scrapes, event) = (Scrapes::default(), Arc::new(Mutex::new(0)));
        for round in 1..=3 {
            let mut requests: Vec<_> = (0..100)
                .map(|_| {
                    let event = event.clone();
                    Box::pin(scrapes.share(move || event.lock().to_string()))
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
