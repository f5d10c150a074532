//! Putting: a stream of pieces out, one acknowledgement back, and the same upload id at the next endpoint if the way breaks.
use crate::{
    answers::Stored,
    client::{Client, fresh_upload},
    endpoints::Door,
    error::{Error, Kind},
    feed::{Feed, FileFeed, OnceFeed, Seen, Step},
    limits,
    resume::{Notes, Subject},
};
use afar_model::{
    id::{ObjectId, UploadId},
    limits::CHUNK_BYTES,
    record,
};
use afar_proto::{convert, v1};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// What is put.
pub enum Source {
    /// A file: read again where needed, and checked for changes while it is read.
    File(PathBuf),
    /// Bytes in memory.
    Bytes(Bytes),
    /// Anything that blocks, such as standard input; read on a thread of its own.
    Read(Box<dyn Read + Send>),
    /// Anything asynchronous.
    Async(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Read(_) => f.write_str("Read"),
            Self::Async(_) => f.write_str("Async"),
        }
    }
}

/// Told how many bytes of a transfer are behind it; it may go back when a transfer begins again.
pub type OnProgress = Arc<dyn Fn(u64) + Send + Sync>;

/// How to put.
#[derive(Clone, Default)]
pub struct PutOptions {
    /// What the client says of the object.
    pub metadata: BTreeMap<String, String>,
    /// Where to note uploads of files, so that a later run can resume them.
    pub notes: Option<Notes>,
    /// Told of progress.
    pub progress: Option<OnProgress>,
    /// The upload's id if it is to be a given one; the same id gives the same version.
    pub upload: Option<UploadId>,
}

impl fmt::Debug for PutOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutOptions").field("metadata", &self.metadata).field("notes", &self.notes).finish_non_exhaustive()
    }
}

impl Client {
    /// Puts an object. When this returns, it is acknowledged at [`Stored::durability`].
    ///
    /// # Errors
    /// If it is not. [`Error::may_still_happen`] says whether it may take effect later.
    pub async fn put(&self, bucket: &str, key: &str, source: Source, options: PutOptions) -> Result<Stored, Error> {
        record::check_key(key).map_err(|error| Error::usage(format!("{bucket}/{key}: {error}")))?;
        match source {
            Source::File(path) => self.put_file(bucket, key, &path, options).await,
            Source::Bytes(content) => {
                let size = Some(content.len() as u64);
                self.put_feed(bucket, key, size, Feed::Once(OnceFeed::bytes(&content)), false, options).await
            }
            Source::Read(from) => {
                let feed = OnceFeed::blocking(from, Path::new("standard input"))?;
                self.put_feed(bucket, key, None, Feed::Once(feed), false, options).await
            }
            Source::Async(from) => self.put_feed(bucket, key, None, Feed::Once(OnceFeed::reading(from)), false, options).await,
        }
    }

    async fn put_file(&self, bucket: &str, key: &str, path: &Path, mut options: PutOptions) -> Result<Stored, Error> {
        let wrong = |error: &std::io::Error| Error::io(path.display(), error);
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            // To open one may take for ever: on a thread that nobody waits for, so that a signal still ends the program.
            let feed = OnceFeed::blocking(Box::new(Later { path: path.to_owned(), file: None }), path)?;
            return self.put_feed(bucket, key, None, Feed::Once(feed), false, options).await;
        }
        let file = File::open(path).map_err(|error| wrong(&error))?;
        let metadata = file.metadata().map_err(|error| wrong(&error))?;
        if metadata.is_dir() {
            return Err(Error::usage(format!("{}: is a directory", path.display())).hint("put trees with -r"));
        }
        if !metadata.is_file() {
            let feed = OnceFeed::blocking(Box::new(file), path)?;
            return self.put_feed(bucket, key, None, Feed::Once(feed), false, options).await;
        }
        let seen = Seen::of(&file).map_err(|error| wrong(&error))?;
        drop(file);
        let absolute = path.canonicalize().map_err(|error| wrong(&error))?;
        let subject = Subject { cluster: self.cluster(), bucket, key, path: &absolute, size: seen.size, modified: seen.modified };
        let notes = options.notes.take().filter(|_| seen.size > CHUNK_BYTES as u64);
        let mut resumes = false;
        if let Some(notes) = &notes {
            resumes = notes.find(&subject);
            if let Err(error) = notes.write(&subject) {
                tracing::warn!(%error, "this upload cannot be resumed by a later run");
            }
        }
        let feed = Feed::File(FileFeed::new(path.to_owned(), seen));
        let outcome = self.put_feed(bucket, key, Some(seen.size), feed, resumes, options).await;
        // What a later run could not finish either is not kept.
        if let (Some(notes), Ok(_)) = (&notes, &outcome) {
            notes.remove(&subject);
        }
        outcome
    }

    async fn put_feed(
        &self,
        bucket: &str,
        key: &str,
        size: Option<u64>,
        mut feed: Feed,
        resumes: bool,
        options: PutOptions,
    ) -> Result<Stored, Error> {
        let upload = options.upload.unwrap_or_else(fresh_upload);
        let mut header = v1::PutHeader {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            upload: convert::bytes(upload.as_bytes()),
            metadata: options.metadata.into_iter().collect(),
            size,
            retry: false,
        };
        let mut tries = self.endpoints().tries();
        let mut ask = resumes;
        loop {
            feed.restart(ask)?;
            let mut attempt = Attempt { door: tries.door()?, header: &header, progress: options.progress.as_ref(), pieces: 0, position: 0 };
            let outcome = Box::pin(attempt.run(&mut feed)).await;
            // A few pieces may have been lost on the way without being worth a question.
            ask = ask || attempt.pieces > WORTH_ASKING;
            match outcome {
                Ok(stored) => {
                    tries.worked();
                    return Ok(stored);
                }
                Err(error) => {
                    tries.failed(error).await?;
                    header.retry = true;
                }
            }
        }
    }
}

/// A file that is opened when it is first read.
struct Later {
    path: PathBuf,
    file: Option<File>,
}

impl Read for Later {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(File::open(&self.path)?),
        };
        file.read(buffer)
    }
}

/// From this many pieces on, asking what has arrived is cheaper than sending it again.
const WORTH_ASKING: u64 = 8;

/// References to present chunks travel together, up to this many: a message of some 10 KB.
const PRESENT_PER_MESSAGE: usize = 256;

/// One attempt at one door.
struct Attempt<'a> {
    door: &'a Door,
    header: &'a v1::PutHeader,
    progress: Option<&'a OnProgress>,
    pieces: u64,
    position: u64,
}

impl Attempt<'_> {
    async fn run(&mut self, feed: &mut Feed) -> Result<Stored, Error> {
        let door = self.door;
        let (sends, messages) = mpsc::channel(limits::MESSAGES_AHEAD);
        let mut service = door.putting(ReceiverStream::new(messages));
        let mut call = pin!(service.put(tokio_stream::empty()));
        let (reply, end) = {
            let mut produce = pin!(self.produce(feed, sends));
            let mut end = None;
            loop {
                tokio::select! {
                    reply = &mut call => break (reply, end),
                    produced = &mut produce, if end.is_none() => end = Some(produced?),
                }
            }
        };
        let stored: Stored = reply.map_err(|status| door.error(&status))?.into_inner().try_into()?;
        let (object, size) = match end.flatten() {
            Some(end) => end,
            // The node knew the upload already and did not wait for the rest: is it what we have here?
            None => self.drain(feed).await?,
        };
        if (stored.object, stored.size) != (object, size) {
            let message = format!("the node stored {} ({} bytes), but {object} ({size} bytes) was sent", stored.object, stored.size);
            return Err(Error::new(Kind::Integrity, message).hint("put it again; if that recurs, check this machine's memory"));
        }
        Ok(stored)
    }

    /// Sends everything. `None` if the node listened no longer: its answer says why.
    async fn produce(&mut self, feed: &mut Feed, sends: mpsc::Sender<v1::PutRequest>) -> Result<Option<(ObjectId, u64)>, Error> {
        let mut header = Some(self.header.clone());
        // The last piece travels with the end, so that an object of one piece is one message.
        let mut held: Vec<v1::PutPiece> = Vec::new();
        loop {
            let step = feed.next(self.door, &self.header.bucket).await?;
            let (piece, length) = match step {
                Step::End(object, size) => {
                    let end = v1::PutEnd { object: convert::bytes(object.as_bytes()), size };
                    let message = v1::PutRequest { header: header.take(), pieces: held, end: Some(end) };
                    return Ok(sends.send(message).await.is_ok().then_some((object, size)));
                }
                Step::Data(data) => {
                    let length = data.len() as u64;
                    (v1::put_piece::Piece::Data(data), length)
                }
                Step::Present(id, length) => {
                    let chunk = v1::ChunkRef { id: convert::bytes(id.as_bytes()), length };
                    (v1::put_piece::Piece::Present(chunk), u64::from(length))
                }
            };
            let all_present = || is_present(&piece) && held.iter().filter_map(|held| held.piece.as_ref()).all(is_present);
            let joins = held.is_empty() || (held.len() < PRESENT_PER_MESSAGE && all_present());
            if !joins {
                let message = v1::PutRequest { header: header.take(), pieces: std::mem::take(&mut held), end: None };
                if sends.send(message).await.is_err() {
                    return Ok(None);
                }
            }
            held.push(v1::PutPiece { piece: Some(piece) });
            self.advance(length);
        }
    }

    async fn drain(&mut self, feed: &mut Feed) -> Result<(ObjectId, u64), Error> {
        loop {
            match feed.next(self.door, &self.header.bucket).await? {
                Step::End(object, size) => return Ok((object, size)),
                Step::Data(data) => self.advance(data.len() as u64),
                Step::Present(_, length) => self.advance(u64::from(length)),
            }
        }
    }

    fn advance(&mut self, length: u64) {
        self.pieces += 1;
        self.position += length;
        if let Some(progress) = self.progress {
            progress(self.position);
        }
    }
}

const fn is_present(piece: &v1::put_piece::Piece) -> bool {
    matches!(piece, v1::put_piece::Piece::Present(_))
}
