//! Requests that carry a chunk, sent without copying it.
//!
//! The usual codec writes a whole message into a buffer of its own, so each MiB is allocated and copied once more for every
//! hop. Here a message becomes its gRPC header with all the small fields, and then the chunk's own bytes as they lie in
//! memory: fields may come in any order, so the chunk comes last. Receivers see ordinary messages.
use crate::v1::{PutPiece, PutRequest, Record, StoreRecords, StoreRequest, put_piece::Piece, store_request::Work};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{
    body::Body,
    codegen::{Service, http, tokio_stream::Stream},
};

/// Below this, copying is cheaper than a frame more.
const UNCOPIED_MIN: usize = 16 << 10;

/// A message that may carry one large field.
pub trait Outgoing: Message + Sized {
    /// The encoding of everything up to the large field's bytes, and those; `Err`: there is no such field.
    ///
    /// # Errors
    /// The message itself, to be encoded as usual.
    fn split(self) -> Result<(Vec<u8>, Bytes), Self>;
}

impl Outgoing for PutRequest {
    fn split(mut self) -> Result<(Vec<u8>, Bytes), Self> {
        match &self.pieces[..] {
            [PutPiece { piece: Some(Piece::Data(data)) }] if data.len() >= UNCOPIED_MIN => {
                let data = data.clone();
                self.pieces.clear();
                let mut head = self.encode_to_vec();
                begin(&mut head, 2, field_len(1, data.len()));
                begin(&mut head, 1, data.len());
                Ok((head, data))
            }
            _ => Err(self),
        }
    }
}

impl Outgoing for StoreRequest {
    fn split(self) -> Result<(Vec<u8>, Bytes), Self> {
        let Some(Work::Records(records)) = &self.work else { return Err(self) };
        let [record] = &records.records[..] else { return Err(self) };
        if record.body.len() < UNCOPIED_MIN {
            return Err(self);
        }
        let body = record.body.clone();
        let record = Record { kind: record.kind, bucket: record.bucket.clone(), body: Bytes::new() }.encode_to_vec();
        let rest = StoreRecords {
            records: Vec::new(),
            sync: records.sync,
            class: records.class.clone(),
            layout_version: records.layout_version,
            supersedes: records.supersedes.clone(),
            open_versions: records.open_versions.clone(),
            open_layouts: records.open_layouts.clone(),
            create: records.create,
        };
        let rest = rest.encode_to_vec();
        let record_len = record.len() + field_len(3, body.len());
        let mut head = Self { sequence: self.sequence, work: None, incarnation: self.incarnation.clone() }.encode_to_vec();
        begin(&mut head, 2, rest.len() + field_len(1, record_len));
        head.put_slice(&rest);
        begin(&mut head, 1, record_len);
        head.put_slice(&record);
        begin(&mut head, 3, body.len());
        Ok((head, body))
    }
}

/// A message as it goes out: framed as gRPC has it, in one or two parts.
fn parts(message: impl Outgoing) -> (Bytes, Bytes) {
    let (head, body) = message.split().unwrap_or_else(|whole| (whole.encode_to_vec(), Bytes::new()));
    let mut first = BytesMut::with_capacity(GRPC_HEADER + head.len());
    first.put_u8(0); // not compressed
    first.put_u32(u32::try_from(head.len() + body.len()).unwrap_or(u32::MAX)); // far above what any receiver takes
    first.put_slice(&head);
    (first.freeze(), body)
}

const GRPC_HEADER: usize = 5;

/// The body of a request: messages as they come.
struct Sending<S> {
    messages: S,
    /// The second part of the message that is under way.
    rest: Bytes,
}

impl<M: Outgoing, S: Stream<Item = M> + Unpin> http_body::Body for Sending<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        }
        Pin::new(&mut self.messages).poll_next(cx).map(|message| {
            message.map(|message| {
                let (first, rest) = parts(message);
                self.rest = rest;
                Ok(Frame::data(first))
            })
        })
    }
}

/// A channel for one call of a method that takes a stream: what the call is given to send is replaced by these messages.
///
/// Everything else about the call (headers, deadlines, how its answer is read) is the generated client's, which is to be
/// given an empty stream.
#[derive(Debug)]
pub struct Uncopied<C> {
    channel: C,
    body: Option<Body>,
}

impl<C> Uncopied<C> {
    /// For one call on this channel.
    pub fn new<M: Outgoing + 'static>(channel: C, messages: impl Stream<Item = M> + Send + Unpin + 'static) -> Self {
        Self { channel, body: Some(Body::new(Sending { messages, rest: Bytes::new() })) }
    }
}

impl<C: Service<http::Request<Body>>> Service<http::Request<Body>> for Uncopied<C> {
    type Response = C::Response;
    type Error = C::Error;
    type Future = C::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> C::Future {
        let body = self.body.take();
        self.channel.call(request.map(|theirs| body.unwrap_or(theirs)))
    }
}

/// A field of bytes or of a message, up to its content.
fn begin(head: &mut Vec<u8>, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, head);
    encode_varint(length as u64, head);
}

/// What such a field takes with its content.
fn field_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::v1::{ChunkRef, PutEnd, PutHeader, SyncWritten};

    /// What a receiver makes of it, and in how many parts it went.
    fn through<M: Outgoing + Default>(message: M) -> (M, usize) {
        let (first, rest) = parts(message);
        let framed = [&first[..], &rest[..]].concat();
        let (header, message) = framed.split_at(GRPC_HEADER);
        assert_eq!(header[0], 0);
        assert_eq!(u32::from_be_bytes(header[1..].try_into().unwrap()) as usize, message.len());
        (M::decode(message).unwrap(), if rest.is_empty() { 1 } else { 2 })
    }

    #[test]
    fn a_put_arrives_as_it_was_whatever_it_carries() {
        let header = PutHeader { bucket: "b".into(), key: "k".repeat(1000), upload: vec![7; 16].into(), ..PutHeader::default() };
        let end = PutEnd { object: vec![9; 32].into(), size: 77 };
        let data = |length: usize| PutPiece { piece: Some(Piece::Data(vec![5; length].into())) };
        let present = PutPiece { piece: Some(Piece::Present(ChunkRef { id: vec![1; 32].into(), length: 5 })) };
        for header in [None, Some(header)] {
            for end in [None, Some(end.clone())] {
                for length in [UNCOPIED_MIN - 1, UNCOPIED_MIN, (1 << 20) - 1, 1 << 20] {
                    let message = PutRequest { header: header.clone(), pieces: vec![data(length)], end: end.clone() };
                    assert_eq!(through(message.clone()), (message, if length < UNCOPIED_MIN { 1 } else { 2 }));
                }
                for pieces in [vec![], vec![data(1 << 20), data(1)], vec![present.clone(), present.clone()]] {
                    let message = PutRequest { header: header.clone(), pieces, end: end.clone() };
                    assert_eq!(through(message.clone()), (message, 1));
                }
            }
        }
    }

    #[test]
    fn records_arrive_as_they_were_whatever_surrounds_them() {
        let record = |length: usize| Record { kind: 1, bucket: vec![3; 32].into(), body: vec![5; length].into() };
        for length in [0, UNCOPIED_MIN - 1, UNCOPIED_MIN, 1 << 20, (1 << 21) + 1] {
            for sync in [false, true] {
                let mut records = StoreRecords { records: vec![record(length)], sync, class: "client".into(), ..StoreRecords::default() };
                records.layout_version = 1 << 40;
                records.supersedes = vec![vec![1; 32].into(), vec![2; 32].into()];
                records.open_versions = vec![1, 2, 3];
                records.create = !sync;
                let message = StoreRequest {
                    sequence: 1 << 33,
                    work: Some(Work::Records(records.clone())),
                    incarnation: Bytes::from_static(&[9; 16]),
                };
                assert_eq!(through(message.clone()), (message, if length < UNCOPIED_MIN { 1 } else { 2 }));
                records.records.push(record(1 << 20));
                let message = StoreRequest { sequence: 5, work: Some(Work::Records(records)), incarnation: Bytes::new() };
                assert_eq!(through(message.clone()), (message, 1));
            }
        }
        let message =
            StoreRequest { sequence: 5, work: Some(Work::Sync(SyncWritten { sequences: vec![1, 2] })), incarnation: Bytes::new() };
        assert_eq!(through(message.clone()), (message, 1));
    }

    #[tokio::test]
    async fn a_body_gives_every_part_in_order() {
        use http_body::Body as _;
        let record = |n: u8| Record { kind: 1, bucket: Bytes::new(), body: vec![n; UNCOPIED_MIN].into() };
        let message = |n: u8| {
            let records = StoreRecords { records: vec![record(n)], ..StoreRecords::default() };
            StoreRequest { sequence: n.into(), work: Some(Work::Records(records)), incarnation: Bytes::new() }
        };
        let (expected, messages): (Vec<_>, Vec<_>) = (1..4).map(|n| (parts(message(n)), message(n))).unzip();
        let mut body = Sending { messages: tonic::codegen::tokio_stream::iter(messages), rest: Bytes::new() };
        let mut got = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            got.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(got, expected.into_iter().flat_map(|(first, rest)| [first, rest]).collect::<Vec<_>>());
    }
}
