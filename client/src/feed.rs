//! What a put is made of, piece by piece, and how it is given a second time when a connection breaks.
//!
//! Reading and hashing happen on a thread of their own, a bounded number of pieces ahead of the network. Each byte is read
//! once into the buffer that is sent and hashed once; only a resumed file is hashed twice, since asking what has already
//! arrived takes the ids of its chunks.
use crate::{
    client::Client,
    endpoints::Door,
    error::{Error, Kind},
    limits,
};
use afar_model::{
    id::{ObjectId, RecordId},
    limits::CHUNK_BYTES,
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{mpsc, oneshot},
};

/// One step of an upload.
#[derive(Debug)]
pub(crate) enum Step {
    /// The next chunk.
    Data(Bytes),
    /// The next chunk, which an earlier attempt brought.
    Present(RecordId, u32),
    /// That was all.
    End(ObjectId, u64),
}

/// What the reading thread says; `Ask` waits for an answer.
enum Said {
    Step(Step),
    Ask(Vec<RecordId>, oneshot::Sender<Vec<bool>>),
    Failed(Error),
}

/// A file, or something that can be read only once.
pub(crate) enum Feed {
    File(FileFeed),
    Once(OnceFeed),
}

impl Feed {
    /// Begins anew. With `ask`, what already arrived is asked for and not sent again.
    pub(crate) fn restart(&mut self, ask: bool) -> Result<(), Error> {
        match self {
            Self::File(feed) => feed.restart(ask),
            Self::Once(feed) => {
                feed.cursor = 0;
                feed.confirmed = feed.gone.is_empty();
                Ok(())
            }
        }
    }

    /// The next step; questions are asked at `door`. After an error it must be restarted.
    pub(crate) async fn next(&mut self, door: &Door, bucket: &str) -> Result<Step, Error> {
        match self {
            Self::File(feed) => feed.next(door, bucket).await,
            Self::Once(feed) => feed.next(door, bucket).await,
        }
    }
}

/// What must not change while a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) size: u64,
    pub(crate) modified: SystemTime,
}

impl Seen {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { size: metadata.len(), modified: metadata.modified()? })
    }
}

/// A file, which can be read again.
pub(crate) struct FileFeed {
    path: PathBuf,
    seen: Seen,
    said: Option<mpsc::Receiver<Said>>,
}

impl FileFeed {
    pub(crate) const fn new(path: PathBuf, seen: Seen) -> Self {
        Self { path, seen, said: None }
    }

    fn restart(&mut self, ask: bool) -> Result<(), Error> {
        let (says, said) = mpsc::channel(limits::PIECES_AHEAD);
        let (path, seen) = (self.path.clone(), self.seen);
        spawn("afar-read-file", move || {
            let outcome = read_file(&path, seen, ask && seen.size > CHUNK_BYTES as u64, &says);
            if let Err(Stop::Failed(error)) = outcome {
                let _ = says.blocking_send(Said::Failed(error));
            }
        })?;
        self.said = Some(said);
        Ok(())
    }

    async fn next(&mut self, door: &Door, bucket: &str) -> Result<Step, Error> {
        let said = self.said.as_mut().ok_or_else(|| Error::new(Kind::Failed, "the file is not being read"))?;
        loop {
            match said.recv().await {
                Some(Said::Step(step)) => return Ok(step),
                Some(Said::Failed(error)) => return Err(error),
                Some(Said::Ask(chunks, answer)) => {
                    let present = Client::have(door, bucket, &chunks).await?;
                    let _ = answer.send(present);
                }
                None => return Err(Error::new(Kind::Failed, format!("{}: reading stopped", self.path.display()))),
            }
        }
    }
}

/// Why a reading thread ends early: nobody listens any more, or the file is not as it was.
enum Stop {
    NobodyListens,
    Failed(Error),
}

fn say(says: &mpsc::Sender<Said>, step: Step) -> Result<(), Stop> {
    says.blocking_send(Said::Step(step)).map_err(|_| Stop::NobodyListens)
}

fn read_file(path: &Path, seen: Seen, ask: bool, says: &mpsc::Sender<Said>) -> Result<(), Stop> {
    let wrong = |error: &io::Error| Stop::Failed(Error::io(path.display(), error));
    let mut file = File::open(path).map_err(|error| wrong(&error))?;
    if Seen::of(&file).map_err(|error| wrong(&error))? != seen {
        return Err(Stop::Failed(changed(path)));
    }
    let mut hasher = blake3::Hasher::new();
    let size = if ask { resend(&mut file, path, &mut hasher, says)? } else { send(&mut file, path, &mut hasher, says)? };
    let now = Seen::of(&file).map_err(|error| wrong(&error))?;
    if now != seen || size != seen.size {
        return Err(Stop::Failed(changed(path)));
    }
    say(says, Step::End(ObjectId::from_bytes(*hasher.finalize().as_bytes()), size))
}

fn changed(path: &Path) -> Error {
    Error::new(Kind::Failed, format!("{}: changed while it was being read; nothing was stored under the key", path.display()))
        .hint("put it again once nobody writes to it, or put a snapshot")
}

fn send(from: &mut impl Read, path: &Path, hasher: &mut blake3::Hasher, says: &mpsc::Sender<Said>) -> Result<u64, Stop> {
    let mut size = 0_u64;
    loop {
        let chunk = read_chunk(from).map_err(|error| Stop::Failed(Error::io(path.display(), &error)))?;
        if chunk.is_empty() {
            return Ok(size);
        }
        let last = chunk.len() < CHUNK_BYTES;
        hasher.update(&chunk);
        size += chunk.len() as u64;
        say(says, Step::Data(chunk.into()))?;
        if last {
            return Ok(size);
        }
    }
}

/// Hashes a stretch, asks which of it is there, and sends the rest.
fn resend(file: &mut File, path: &Path, hasher: &mut blake3::Hasher, says: &mpsc::Sender<Said>) -> Result<u64, Stop> {
    let mut size = 0_u64;
    loop {
        let start = size;
        let mut chunks: Vec<(RecordId, usize)> = Vec::new();
        while chunks.len() < limits::RESUME_STRETCH {
            let chunk = read_chunk(file).map_err(|error| Stop::Failed(Error::io(path.display(), &error)))?;
            if chunk.is_empty() {
                break;
            }
            hasher.update(&chunk);
            chunks.push((RecordId::of(&chunk), chunk.len()));
            size += chunk.len() as u64;
            if chunk.len() < CHUNK_BYTES {
                break;
            }
        }
        if chunks.is_empty() {
            return Ok(size);
        }
        let full = chunks.len() == limits::RESUME_STRETCH && chunks.last().is_some_and(|(_, length)| *length == CHUNK_BYTES);
        let (answer, answered) = oneshot::channel();
        says.blocking_send(Said::Ask(chunks.iter().map(|(id, _)| *id).collect(), answer)).map_err(|_| Stop::NobodyListens)?;
        let present = answered.blocking_recv().map_err(|_| Stop::NobodyListens)?;
        let mut offset = start;
        for ((id, length), present) in chunks.into_iter().zip(present) {
            if present {
                say(says, Step::Present(id, length as u32))?;
            } else {
                let mut chunk = vec![0; length];
                file.read_exact_at(&mut chunk, offset).map_err(|error| Stop::Failed(Error::io(path.display(), &error)))?;
                if RecordId::of(&chunk) != id {
                    return Err(Stop::Failed(changed(path)));
                }
                say(says, Step::Data(chunk.into()))?;
            }
            offset += length as u64;
        }
        if !full {
            return Ok(size);
        }
    }
}

/// Up to one chunk; shorter only at the end. Reads straight into the buffer that will be sent, which is not zeroed first.
fn read_chunk(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    from.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    // Not tokio's blocking pool: a thread that waits for a terminal or a pipe must not keep the program from ending.
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).map_err(|error| Error::io("start a reading thread", &error))
}

/// A pipe, or anything else that can be read only once. What was read lately is at hand to be sent again; of what came before
/// only the ids are known, which is enough if the chunks have arrived.
pub(crate) struct OnceFeed {
    said: mpsc::Receiver<Said>,
    gone: Vec<(RecordId, u32)>,
    at_hand: VecDeque<Bytes>,
    bytes_at_hand: usize,
    cursor: usize,
    confirmed: bool,
    /// Of bytes in memory: hashed piece by piece as they go out. A hash of all of it would keep the first byte waiting, and
    /// fetch from memory what sending fetches again.
    hashing: Option<Box<Hashing>>,
    end: Option<(ObjectId, u64)>,
}

/// The digest of the pieces at hand, as far as they were given out.
struct Hashing {
    hasher: blake3::Hasher,
    pieces: usize,
}

impl OnceFeed {
    fn new(said: mpsc::Receiver<Said>) -> Self {
        Self { said, gone: Vec::new(), at_hand: VecDeque::new(), bytes_at_hand: 0, cursor: 0, confirmed: true, hashing: None, end: None }
    }

    pub(crate) fn blocking(mut from: Box<dyn Read + Send>, name: &Path) -> Result<Self, Error> {
        let (says, said) = mpsc::channel(limits::PIECES_AHEAD);
        let name = name.to_owned();
        spawn("afar-read", move || {
            let mut hasher = blake3::Hasher::new();
            let outcome = send(&mut from, &name, &mut hasher, &says)
                .and_then(|size| say(&says, Step::End(ObjectId::from_bytes(*hasher.finalize().as_bytes()), size)));
            if let Err(Stop::Failed(error)) = outcome {
                let _ = says.blocking_send(Said::Failed(error));
            }
        })?;
        Ok(Self::new(said))
    }

    pub(crate) fn reading(mut from: Box<dyn AsyncRead + Send + Unpin>) -> Self {
        let (says, said) = mpsc::channel(limits::PIECES_AHEAD);
        tokio::spawn(async move {
            let (mut hasher, mut size) = (blake3::Hasher::new(), 0_u64);
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                if let Err(error) = (&mut from).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await {
                    let _ = says.send(Said::Failed(Error::io("read what is put", &error))).await;
                    return;
                }
                let last = chunk.len() < CHUNK_BYTES;
                hasher.update(&chunk);
                size += chunk.len() as u64;
                if !chunk.is_empty() && says.send(Said::Step(Step::Data(chunk.into()))).await.is_err() {
                    return;
                }
                if last {
                    let _ = says.send(Said::Step(Step::End(ObjectId::from_bytes(*hasher.finalize().as_bytes()), size))).await;
                    return;
                }
            }
        });
        Self::new(said)
    }

    pub(crate) fn bytes(content: &Bytes) -> Self {
        let (says, said) = mpsc::channel(1);
        drop(says);
        let mut feed = Self::new(said);
        let pieces = (0..content.len()).step_by(CHUNK_BYTES).map(|at| content.slice(at..(at + CHUNK_BYTES).min(content.len())));
        feed.at_hand.extend(pieces);
        feed.hashing = Some(Box::new(Hashing { hasher: blake3::Hasher::new(), pieces: 0 }));
        feed
    }

    async fn next(&mut self, door: &Door, bucket: &str) -> Result<Step, Error> {
        if !self.confirmed {
            let chunks: Vec<RecordId> = self.gone.iter().map(|(id, _)| *id).collect();
            if !Client::have(door, bucket, &chunks).await?.into_iter().all(|present| present) {
                return Err(self.cannot_resume());
            }
            self.confirmed = true;
        }
        let index = self.cursor;
        if let Some((id, length)) = self.gone.get(index) {
            self.cursor += 1;
            return Ok(Step::Present(*id, *length));
        }
        if let Some(chunk) = self.at_hand.get(index - self.gone.len()) {
            self.cursor += 1;
            // When a put begins anew, what was given out before is hashed already.
            if let Some(hashing) = self.hashing.as_mut().filter(|hashing| hashing.pieces == index) {
                hashing.hasher.update(chunk);
                hashing.pieces += 1;
            }
            return Ok(Step::Data(chunk.clone()));
        }
        if let Some(hashing) = self.hashing.take() {
            self.end = Some((ObjectId::from_bytes(*hashing.hasher.finalize().as_bytes()), hashing.hasher.count()));
        }
        if let Some((object, size)) = self.end {
            return Ok(Step::End(object, size));
        }
        match self.said.recv().await {
            Some(Said::Step(Step::Data(chunk))) => {
                self.remember(chunk.clone());
                self.cursor += 1;
                Ok(Step::Data(chunk))
            }
            Some(Said::Step(Step::End(object, size))) => {
                self.end = Some((object, size));
                Ok(Step::End(object, size))
            }
            Some(Said::Failed(error)) => Err(error),
            Some(Said::Step(Step::Present(..)) | Said::Ask(..)) | None => Err(Error::new(Kind::Failed, "reading stopped")),
        }
    }

    fn remember(&mut self, chunk: Bytes) {
        self.bytes_at_hand += chunk.len();
        self.at_hand.push_back(chunk);
        while self.bytes_at_hand > limits::REPLAY_BYTES {
            let Some(oldest) = self.at_hand.pop_front() else { return };
            self.bytes_at_hand -= oldest.len();
            self.gone.push((RecordId::of(&oldest), oldest.len() as u32));
        }
    }

    fn cannot_resume(&self) -> Error {
        let sent: u64 = self.gone.iter().map(|(_, length)| u64::from(*length)).sum();
        Error::new(
            Kind::Failed,
            format!("the connection broke, and the first {sent} bytes, which are no longer at hand, have not all arrived: a pipe cannot be read twice"),
        )
        .hint("run the whole command again, or put a file: a file resumes")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::endpoints::Bearer;
    use std::io::Write as _;
    use tonic::transport::ClientTlsConfig;

    fn collect(mut said: mpsc::Receiver<Said>) -> (Vec<usize>, Option<(ObjectId, u64)>, Option<Error>) {
        let (mut sizes, mut end, mut failed) = (Vec::new(), None, None);
        while let Some(said) = said.blocking_recv() {
            match said {
                Said::Step(Step::Data(chunk)) => sizes.push(chunk.len()),
                Said::Step(Step::End(object, size)) => end = Some((object, size)),
                Said::Step(Step::Present(_, length)) => sizes.push(length as usize),
                Said::Ask(chunks, answer) => answer.send(vec![true; chunks.len()]).unwrap(),
                Said::Failed(error) => failed = Some(error),
            }
        }
        (sizes, end, failed)
    }

    fn file(content: &[u8]) -> (tempfile::NamedTempFile, Seen) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let seen = Seen::of(file.as_file()).unwrap();
        (file, seen)
    }

    #[test]
    fn every_piece_is_a_whole_chunk_but_the_last() {
        for (size, pieces) in
            [(0, vec![]), (1, vec![1]), (CHUNK_BYTES, vec![CHUNK_BYTES]), (2 * CHUNK_BYTES + 7, vec![CHUNK_BYTES, CHUNK_BYTES, 7])]
        {
            for ask in [false, true] {
                let content = vec![42; size];
                let (file, seen) = file(&content);
                let mut feed = FileFeed::new(file.path().into(), seen);
                feed.restart(ask).unwrap();
                let (sizes, end, failed) = collect(feed.said.take().unwrap());
                assert_eq!((sizes, end, failed), (pieces.clone(), Some((ObjectId::of(&content), size as u64)), None));
            }
        }
    }

    #[test]
    fn a_file_that_changed_or_vanished_never_ends_well() {
        let (mut file, seen) = file(b"before");
        file.write_all(b" and after").unwrap();
        let mut feed = FileFeed::new(file.path().into(), seen);
        feed.restart(false).unwrap();
        let (_, end, failed) = collect(feed.said.take().unwrap());
        assert_eq!((end, failed.map(|error| error.message().contains("changed"))), (None, Some(true)));
        let path = file.path().to_owned();
        drop(file);
        let mut feed = FileFeed::new(path, seen);
        feed.restart(false).unwrap();
        assert!(collect(feed.said.take().unwrap()).2.is_some());
    }

    #[tokio::test]
    async fn bytes_in_memory_are_hashed_as_they_go_however_often_they_begin_anew() {
        let door = Door::new("https://localhost:1", &ClientTlsConfig::new(), &Bearer::new("AK", "x").unwrap()).unwrap();
        for size in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5] {
            let content = Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
            let mut feed = Feed::Once(OnceFeed::bytes(&content));
            // Given up after so many steps, and begun anew.
            for steps in [1, 3, 2, usize::MAX] {
                feed.restart(false).unwrap();
                let mut got = Vec::new();
                for _ in 0..steps {
                    match feed.next(&door, "bucket").await.unwrap() {
                        Step::Data(chunk) => got.extend_from_slice(&chunk),
                        Step::Present(..) => unreachable!("nothing of it is gone"),
                        Step::End(object, length) => {
                            assert_eq!((object, length), (ObjectId::of(&content), size as u64));
                            assert_eq!(got, content);
                            break;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_long_gone_is_known_by_its_id() {
        let mut feed = OnceFeed::bytes(&Bytes::new());
        let chunks = limits::REPLAY_BYTES / CHUNK_BYTES + 3;
        for index in 0..chunks {
            feed.remember(Bytes::from(vec![index as u8; CHUNK_BYTES]));
        }
        assert_eq!((feed.gone.len(), feed.at_hand.len()), (3, chunks - 3));
        assert_eq!(feed.gone[1].0, RecordId::of(&vec![1; CHUNK_BYTES]));
    }
}
