//! What every request passes through. A panic in it is a bug: it is caught, counted, answered with INTERNAL, and takes nobody
//! else down. And what it moves is counted: see [`Flow`].
use crate::{
    gateways::grpc::{
        flow::{Counted, Ending, Flow},
        meta::{self, exit},
    },
    lifecycle::Lifecycle,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Bytes, http},
};

/// Wraps every service of a server.
#[derive(Debug, Clone)]
pub struct GuardLayer(Lifecycle);

impl GuardLayer {
    /// Panics are counted there.
    pub const fn new(lifecycle: Lifecycle) -> Self {
        Self(lifecycle)
    }
}

impl<S> tower::Layer<S> for GuardLayer {
    type Service = Guard<S>;
    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, lifecycle: self.0.clone() }
    }
}

/// A service that answers even if it panics.
#[derive(Debug, Clone)]
pub struct Guard<S> {
    inner: S,
    lifecycle: Lifecycle,
}

impl<S> tower::Service<http::Request<Body>> for Guard<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let lifecycle = self.lifecycle.clone();
        let method = request.uri().path().to_owned();
        let flow = Flow::default();
        let ending = flow.ending();
        let mut request = request.map(|body| Body::new(Counted::new(body, flow.clone())));
        request.extensions_mut().insert(flow.clone());
        let answering = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            match answering.await {
                Ok(answer) => {
                    Ok(answer?.map(|body| Body::new(GuardedBody { body, rest: Bytes::new(), lifecycle, method, flow, _ending: ending })))
                }
                Err(_) => Ok(panicked(&lifecycle, &method).into_http()),
            }
        })
    }
}

fn panicked(lifecycle: &Lifecycle, method: &str) -> Status {
    lifecycle.count_panic();
    tracing::error!(method, "a request panicked: this is a bug, please report it");
    meta::status(Code::Internal, exit::FAILED, "the node failed on this request: this is a bug, its log says more")
}

/// What a streaming answer runs while it is sent.
struct GuardedBody {
    body: Body,
    /// What of a message has not been handed over yet.
    rest: Bytes,
    lifecycle: Lifecycle,
    method: String,
    flow: Flow,
    _ending: Ending,
}

impl GuardedBody {
    /// The next frame's worth of `rest`: a whole message would be taken over at once, and nobody could tell how much of it
    /// the client has taken.
    fn next_frame(&mut self) -> http_body::Frame<Bytes> {
        let data = self.rest.split_to(self.rest.len().min(afar_proto::limits::FRAME_BYTES as usize));
        self.flow.offered(data.len());
        http_body::Frame::data(data)
    }
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = &mut *self;
        this.flow.wanted();
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.next_frame())));
        }
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.body).poll_frame(cx))) {
            Ok(Poll::Ready(Some(Ok(frame)))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => {
                    this.rest = data;
                    this.next_frame()
                }
                Err(frame) => frame,
            }))),
            Ok(polled) => polled,
            Err(_) => {
                let status = panicked(&this.lifecycle, &this.method);
                this.body = Body::empty();
                Poll::Ready(Some(Err(status)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { http_body::SizeHint::default() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tower::{Layer as _, Service as _, service_fn};

    #[tokio::test]
    async fn rule_29_a_message_is_handed_over_in_frames_that_are_counted() {
        use http_body::Body as _;
        const FRAME: usize = afar_proto::limits::FRAME_BYTES as usize;
        let message = "seven".repeat(2 * FRAME / 5 + 2);
        let (flow, content) = (Flow::default(), Body::new(message.clone()));
        let mut body = GuardedBody {
            body: content,
            rest: Bytes::new(),
            lifecycle: Lifecycle::new(),
            method: String::new(),
            _ending: flow.ending(),
            flow,
        };
        let mut got = Vec::new();
        let mut sizes = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let data = frame.unwrap().into_data().unwrap();
            sizes.push(data.len());
            got.extend_from_slice(&data);
        }
        assert_eq!(sizes, [FRAME, FRAME, message.len() - 2 * FRAME]);
        assert!(got == message.as_bytes() && body.is_end_stream());
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_counted() {
        let lifecycle = Lifecycle::new();
        let panics = service_fn(|request: http::Request<Body>| async move {
            assert_ne!(request.uri().path(), "/bad", "on purpose");
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        });
        let mut guarded = GuardLayer::new(lifecycle.clone()).layer(panics);
        let mut ask = |path: &str| guarded.call(http::Request::builder().uri(path).body(Body::empty()).unwrap());
        let (good, bad) = (ask("/good"), ask("/bad"));
        assert!(good.await.unwrap().headers().is_empty());
        let answer = bad.await.unwrap();
        assert_eq!(answer.headers().get("grpc-status").unwrap(), "13");
        assert_eq!(lifecycle.panics(), 1);
    }
}
