//! What moves on one request, in both directions, counted where HTTP/2 hands it over: who wants to know how slow a client is
//! must not wait for whole messages.
use crate::pace::{Pace, TooSlow};
use bytes::Bytes;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tonic::{Status, body::Body};

/// Counts of one request. Found among the extensions of every request; cheap to clone, every clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Flow(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    received: AtomicU64,
    sent: watch::Sender<Sent>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    /// Bytes that HTTP/2 has asked for more after.
    taken: u64,
    /// Bytes that were handed over since: if there are any, HTTP/2 waits for the client.
    offered: u64,
    /// The answer is complete, or was given up.
    ended: bool,
}

impl Flow {
    /// Bytes of the request so far.
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// HTTP/2 has room for more of the answer.
    pub fn wanted(&self) {
        self.0.sent.send_if_modified(|sent| {
            let offered = std::mem::take(&mut sent.offered);
            sent.taken += offered;
            offered > 0
        });
    }

    /// So many bytes of the answer were handed over.
    pub fn offered(&self, bytes: usize) {
        self.0.sent.send_modify(|sent| sent.offered += bytes as u64);
    }

    /// To be dropped when there will be no more of the answer.
    pub fn ending(&self) -> Ending {
        Ending(self.clone())
    }

    /// Watches how the client takes the answer; returns when the answer has ended.
    ///
    /// # Errors
    /// As soon as the client is too slow.
    pub async fn watch(&self, within: Duration) -> Result<(), TooSlow> {
        let mut pace = Pace::new(within);
        let mut sent = self.0.sent.subscribe();
        let mut known = 0;
        loop {
            // While the node has nothing to give, the client need not take anything.
            let Ok(state) = sent.wait_for(|sent| sent.offered > 0 || sent.ended).await.map(|state| *state) else { return Ok(()) };
            if state.ended {
                return Ok(());
            }
            let since = Instant::now();
            // Over when it is taken, when it ends, or when it is time to look.
            let _ = tokio::time::timeout(pace.left(), sent.wait_for(|sent| sent.offered == 0 || sent.ended)).await;
            let taken = sent.borrow().taken;
            pace.waited(since.elapsed(), taken.saturating_sub(known))?;
            known = taken;
        }
    }
}

/// When this is dropped, the answer has ended.
#[derive(Debug)]
pub struct Ending(Flow);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.0.sent.send_modify(|sent| sent.ended = true);
    }
}

/// A request's body that is counted.
#[derive(Debug)]
pub struct Counted {
    body: Body,
    flow: Flow,
}

impl Counted {
    /// Counts `body` there.
    pub const fn new(body: Body, flow: Flow) -> Self {
        Self { body, flow }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.flow.0.received.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEFLY: Duration = Duration::from_millis(20);
    /// More than the minimum rate asks for in that time.
    const ENOUGH: usize = 1 << 20;

    #[tokio::test]
    async fn rule_29_a_client_that_takes_nothing_is_noticed() {
        let flow = Flow::default();
        flow.offered(ENOUGH);
        assert_eq!(flow.watch(BRIEFLY).await, Err(TooSlow(BRIEFLY)), "offered is not taken");
        // Nor does it help to have taken something before.
        let flow = Flow::default();
        flow.offered(ENOUGH);
        flow.wanted();
        flow.offered(ENOUGH);
        assert_eq!(flow.watch(BRIEFLY).await, Err(TooSlow(BRIEFLY)));
    }

    #[tokio::test]
    async fn a_client_is_not_blamed_for_what_the_node_does_not_give() {
        let flow = Flow::default();
        let ending = flow.ending();
        flow.offered(ENOUGH);
        flow.wanted();
        let mut watching = std::pin::pin!(flow.watch(BRIEFLY));
        assert!(tokio::time::timeout(BRIEFLY * 5, &mut watching).await.is_err(), "it waits for the node");
        drop(ending);
        assert_eq!(watching.await, Ok(()));
    }
}
