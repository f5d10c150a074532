//! One door for tasks, one way out. `tokio::spawn` appears nowhere else.
//!
//! A node ends in two steps, because a client's request that is under way still needs the lanes to the peers:
//! [`Lifecycle::begin_drain`] tells the doors to take nothing new; [`Lifecycle::stop`] then tells every task to end and
//! waits for them, up to a bound. A task that outlives it is a bug, is counted, and is dropped with the process.
use futures_util::FutureExt as _;
use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// The node's tasks. Cheap to clone; every clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
    panics: Arc<AtomicU64>,
}

/// Tasks that did not end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} tasks are still running")]
pub struct StillRunning(pub usize);

impl Lifecycle {
    /// Nothing runs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that runs until its token is cancelled.
    pub fn spawn<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_brief(name, task(self.stop.child_token()))
    }

    /// Starts a task that ends by itself, soon: shutdown waits for it.
    pub fn spawn_brief(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let panics = Arc::clone(&self.panics);
        let guarded = async move {
            // Tokio would catch it too, but silently.
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(task = name, "a task panicked: this is a bug, please report it");
            }
        };
        self.tasks.spawn(guarded.instrument(tracing::info_span!(parent: None, "task", name)))
    }

    /// Runs work to its end, even if whoever waits for it here stops waiting: a request is dropped halfway when its caller hangs
    /// up. `None` if it panicked (counted) or the runtime is ending.
    pub async fn to_the_end<T: Send + 'static>(&self, name: &'static str, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.spawn_brief(name, async move {
            // An error means that nobody waits any more.
            let _ = answer.send(work.await);
        });
        answered.await.ok()
    }

    /// Runs blocking work on a thread for it, and waits. `None` if it panicked (counted) or the runtime is ending.
    pub async fn blocking<T: Send + 'static>(&self, name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        match self.tasks.spawn_blocking(work).await {
            Ok(result) => Some(result),
            Err(error) => {
                if error.is_panic() {
                    self.count_panic();
                    tracing::error!(task = name, "blocking work panicked: this is a bug, please report it");
                }
                None
            }
        }
    }

    /// Something panicked and was caught elsewhere.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Panics caught in this run: each is a bug.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// From now on nothing new is taken from clients.
    pub fn begin_drain(&self) {
        self.draining.cancel();
    }

    /// Whether nothing new is taken from clients.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when [`Lifecycle::begin_drain`] was called.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Whether tasks were told to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves when tasks are told to end. For those who wait inside [`Lifecycle::spawn_brief`] or a request.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// A token that is cancelled when tasks are told to end.
    pub fn token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Tells every task to end, and waits for them.
    ///
    /// # Errors
    /// How many were still running after `grace`.
    pub async fn stop(&self, grace: Duration) -> Result<(), StillRunning> {
        self.begin_drain();
        self.stop.cancel();
        self.tasks.close(); // `wait` only returns once the tracker is closed and empty
        tokio::time::timeout(grace, self.tasks.wait()).await.map_err(|_| StillRunning(self.tasks.len()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stopping_waits_for_tasks_and_a_panic_is_counted() {
        let lifecycle = Lifecycle::new();
        let (sent, received) = oneshot::channel();
        lifecycle.spawn("waits", |stop| async move {
            stop.cancelled().await;
            sent.send(()).unwrap();
        });
        lifecycle.spawn_brief("panics", async { panic!("on purpose") }).await.unwrap();
        assert_eq!(lifecycle.panics(), 1);
        assert_eq!(lifecycle.stop(Duration::from_secs(60)).await, Ok(()));
        assert_eq!(received.await, Ok(()));
    }

    #[tokio::test]
    async fn what_goes_to_the_end_does_so_when_nobody_waits_any_more() {
        let lifecycle = Lifecycle::new();
        let (begin, begun) = oneshot::channel::<()>();
        let (sent, received) = oneshot::channel();
        let asked = lifecycle.to_the_end("work", async move {
            begun.await.unwrap();
            sent.send(7).unwrap();
        });
        let hung_up = tokio::time::timeout(Duration::ZERO, asked).await;
        assert!(hung_up.is_err());
        begin.send(()).unwrap();
        assert_eq!(received.await, Ok(7));
        assert_eq!(lifecycle.to_the_end("work", async { 8 }).await, Some(8));
        assert_eq!(lifecycle.to_the_end("work", async { panic!("on purpose") }).await, None::<()>);
        assert_eq!(lifecycle.panics(), 1);
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_reported() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("deaf", |_| std::future::pending());
        assert_eq!(lifecycle.stop(Duration::from_millis(1)).await, Err(StillRunning(1)));
    }
}
