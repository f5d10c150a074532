//! Getting: every byte is checked against a hash before it counts, and a connection that breaks in the middle goes on, at the
//! same byte of the same version, at another endpoint.
//!
//! A file appears under its name only when it is whole, verified and on disk.
use crate::{
    answers::{Info, malformed},
    client::Client,
    endpoints::{Door, Tries},
    error::{Error, Kind},
    limits,
    names::{Wanted, What},
    put::OnProgress,
};
use afar_model::id::{ObjectId, RecordId};
use afar_proto::{convert, v1};
use bytes::Bytes;
use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
};
use tempfile::TempPath;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};
use tonic::{Response, Streaming};

/// Which bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// Of the first byte.
    pub offset: u64,
    /// How many; `None`: to the end.
    pub length: Option<u64>,
}

impl Range {
    /// Everything.
    pub const ALL: Self = Self { offset: 0, length: None };
}

impl Client {
    /// Opens a download; nothing is asked for before the first [`Download::next`].
    pub fn download(&self, wanted: &Wanted, range: Range) -> Download<'_> {
        Download {
            tries: self.endpoints().tries(),
            wanted: wanted.clone(),
            range,
            position: range.offset,
            info: None,
            open: None,
            check_pieces: true,
        }
    }

    /// Writes an object, or a range of it, to a sink. Each piece is verified before its first byte is written, and the whole
    /// at the end, if the whole was asked for.
    ///
    /// # Errors
    /// If there is no such object, a hash does not match, or nobody could serve it. What was written before the error was verified.
    pub async fn get<W: AsyncWrite + Unpin>(&self, wanted: &Wanted, range: Range, sink: &mut W) -> Result<Info, Error> {
        let mut download = self.download(wanted, range);
        let mut hasher = blake3::Hasher::new();
        while let Some(piece) = download.next().await? {
            hasher.update(&piece);
            sink.write_all(&piece).await.map_err(|error| output(&error))?;
        }
        sink.flush().await.map_err(|error| output(&error))?;
        let info = download.info().await?;
        if range == Range::ALL {
            check_whole(&info, &ObjectId::from_bytes(*hasher.finalize().as_bytes()))?;
        }
        Ok(info)
    }

    /// A range of an object in memory.
    ///
    /// # Errors
    /// As of [`Self::get`].
    pub async fn get_bytes(&self, wanted: &Wanted, range: Range) -> Result<(Info, Bytes), Error> {
        let mut content = Vec::new();
        let info = self.get(wanted, range, &mut content).await?;
        Ok((info, content.into()))
    }

    /// Writes a whole object to a file: first beside it, then verified, then synced, then renamed over it. On any error the
    /// file is as it was.
    ///
    /// # Errors
    /// If there is no such object, its hash does not match, nobody could serve it, or the file cannot be written.
    pub async fn get_file(&self, wanted: &Wanted, path: &Path, progress: Option<OnProgress>) -> Result<Info, Error> {
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            // A device or a pipe: it must not be replaced by a file.
            let mut sink = tokio::fs::OpenOptions::new().write(true).open(path).await.map_err(|error| Error::io(path.display(), &error))?;
            return self.get(wanted, Range::ALL, &mut sink).await;
        }
        let mut download = self.download(wanted, Range::ALL);
        // The writer hashes the whole, which is as good and costs once.
        download.check_pieces = false;
        let info = download.info().await?;
        let mut file = FileWriter::create(path)?;
        let mut position = 0;
        while let Some(piece) = download.next().await? {
            position += piece.len() as u64;
            file.write(piece).await?;
            if let Some(progress) = &progress {
                progress(position);
            }
        }
        file.finish(&info).await?;
        Ok(info)
    }
}

fn output(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::new(Kind::OutputClosed, "the reader has gone"),
        _ => Error::io("write", error),
    }
}

fn check_whole(info: &Info, found: &ObjectId) -> Result<(), Error> {
    if *found == info.object {
        return Ok(());
    }
    Err(corrupt(&format!("{}/{}", info.bucket, info.key), &format!("its bytes hash to {found}, its id is {}", info.object)))
}

fn corrupt(what: &str, why: &str) -> Error {
    Error::new(Kind::Integrity, format!("{what} does not match its hash: {why}")).hint(
        "the bytes were discarded; try another endpoint, and tell the operator: a node that verifies before it answers cannot do this",
    )
}

struct Open {
    door: Door,
    stream: Streaming<v1::GetReply>,
    /// A small object comes in the message that describes it.
    first: Option<v1::DataPiece>,
}

impl Open {
    async fn message(&mut self) -> Result<Option<v1::GetReply>, Error> {
        if let Some(piece) = self.first.take() {
            return Ok(Some(v1::GetReply { info: None, piece: Some(piece) }));
        }
        let stream = &mut self.stream;
        self.door.ask(limits::IDLE_TIMEOUT, async { stream.message().await.map(Response::new) }).await
    }
}

/// A piece has its own hash, or is the whole object.
fn check_piece(info: &Info, piece: &v1::DataPiece) -> Result<(), Error> {
    let found = RecordId::of(&piece.data);
    let (matches, expected) = match &piece.id {
        Some(id) => (id.as_ref() == found.as_bytes(), hex::encode(id)),
        None => (
            piece.offset == 0 && piece.data.len() as u64 == info.size && found.as_bytes() == info.object.as_bytes(),
            info.object.to_string(),
        ),
    };
    if matches {
        return Ok(());
    }
    Err(corrupt(
        &format!("{}/{} at byte {}", info.bucket, info.key, piece.offset),
        &format!("the bytes hash to {found}, expected {expected}"),
    ))
}

/// A download in progress.
pub struct Download<'a> {
    tries: Tries<'a>,
    wanted: Wanted,
    range: Range,
    position: u64,
    info: Option<Info>,
    open: Option<Open>,
    check_pieces: bool,
}

impl fmt::Debug for Download<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("wanted", &self.wanted).field("position", &self.position).finish_non_exhaustive()
    }
}

impl Download<'_> {
    /// What is being downloaded; asks for it if nobody did so yet.
    ///
    /// # Errors
    /// If there is no such object, or nobody could say.
    pub async fn info(&mut self) -> Result<Info, Error> {
        loop {
            if let Some(info) = &self.info {
                return Ok(info.clone());
            }
            self.open().await?;
        }
    }

    /// The next bytes in order; `None` after the last.
    ///
    /// # Errors
    /// If there is no such object, a piece is not what its hash says, or nobody could serve it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.info.as_ref().is_some_and(|info| self.position >= self.end(info)) {
                return Ok(None);
            }
            let Some(open) = &mut self.open else {
                self.open().await?;
                continue;
            };
            let failed = match open.message().await {
                Ok(Some(v1::GetReply { piece: Some(piece), .. })) => {
                    let bytes = self.accept(piece)?;
                    self.tries.progressed();
                    return Ok(Some(bytes));
                }
                Ok(Some(v1::GetReply { piece: None, .. })) => continue,
                Ok(None) => Error::connection(Kind::Unreachable, format!("{} stopped in the middle of {}", open.door.name(), self.wanted)),
                Err(error) => error,
            };
            self.open = None;
            self.tries.failed(failed).await?;
        }
    }

    /// Checks a piece and cuts away what was not asked for.
    fn accept(&mut self, piece: v1::DataPiece) -> Result<Bytes, Error> {
        let info = self.info.as_ref().ok_or_else(|| malformed(&"bytes before their description"))?;
        let (start, end) = (piece.offset, piece.offset.saturating_add(piece.data.len() as u64));
        if !(start..end).contains(&self.position) || end > info.size {
            return Err(malformed(&format!("bytes {start} to {end} of {} where {} comes next", info.size, self.position)));
        }
        if self.check_pieces {
            check_piece(info, &piece)?;
        }
        let until = end.min(self.end(info));
        let bytes = piece.data.slice((self.position - start) as usize..(until - start) as usize);
        self.position = until;
        Ok(bytes)
    }

    fn end(&self, info: &Info) -> u64 {
        self.range.length.map_or(info.size, |length| self.range.offset.saturating_add(length).min(info.size))
    }

    /// Opens a stream at the present position, at the next door that has one.
    async fn open(&mut self) -> Result<(), Error> {
        let door = self.tries.door()?.clone();
        match self.open_at(&door).await {
            Ok((info, stream, first)) => {
                self.tries.worked();
                if self.info.as_ref().is_some_and(|known| known.object != info.object) {
                    return Err(corrupt(&self.wanted.to_string(), "another endpoint has other content under the same version"));
                }
                if self.range.offset > info.size {
                    return Err(Error::usage(format!("{}: has {} bytes, none at offset {}", self.wanted, info.size, self.range.offset)));
                }
                self.info = Some(info);
                self.open = Some(Open { door, stream, first });
                Ok(())
            }
            Err(error) => self.tries.failed(error).await,
        }
    }

    async fn open_at(&self, door: &Door) -> Result<(Info, Streaming<v1::GetReply>, Option<v1::DataPiece>), Error> {
        // Once begun, the version is fixed: an overwrite in the meantime must not mix two contents.
        let version = self.info.as_ref().map(|info| info.version).or(self.wanted.version);
        let key = match (&self.wanted.what, &self.info) {
            (What::Key(key), _) => key.clone(),
            (What::Object(_), Some(info)) => info.key.clone(),
            (What::Object(_), None) => String::new(),
        };
        let request = v1::GetRequest {
            bucket: self.wanted.bucket.clone(),
            key,
            object: self.wanted.object_id().map(|object| convert::bytes(object.as_bytes())),
            version: version.map(|version| convert::bytes(version.as_bytes())),
            offset: self.position,
            length: self.range.length.map(|length| self.range.offset.saturating_add(length).saturating_sub(self.position)),
        };
        let mut service = door.objects();
        let mut stream: Streaming<v1::GetReply> = door.ask(limits::IDLE_TIMEOUT, service.get(request)).await?;
        let first = door.ask(limits::IDLE_TIMEOUT, async { stream.message().await.map(Response::new) }).await?;
        let first = first.ok_or_else(|| Error::connection(Kind::Unreachable, format!("{} answered nothing", door.name())))?;
        let info: Info = first.info.ok_or_else(|| malformed(&"an object without a description"))?.try_into()?;
        if self.wanted.object_id().is_some_and(|object| *object != info.object) {
            return Err(corrupt(&self.wanted.to_string(), &format!("the node offers {}", info.object)));
        }
        Ok((info, stream, first.piece))
    }
}

/// Writes and hashes on a thread of its own, so that the disk and the network work at the same time.
struct FileWriter {
    /// Removes the unfinished file when dropped, whatever happens to the thread.
    unfinished: TempPath,
    target: PathBuf,
    pieces: mpsc::Sender<Bytes>,
    outcome: oneshot::Receiver<io::Result<ObjectId>>,
}

impl FileWriter {
    fn create(target: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let wrong = |error: &io::Error| Error::io(target.display(), error);
        let folder = folder_of(target);
        // As a plain `open` would make it, or as the file that it replaces.
        let permissions = fs::metadata(target).map_or_else(|_| fs::Permissions::from_mode(0o666), |metadata| metadata.permissions());
        let file = tempfile::Builder::new().prefix(".afar-").permissions(permissions).tempfile_in(folder).map_err(|error| wrong(&error))?;
        let (file, unfinished) = file.into_parts();
        let (pieces, incoming) = mpsc::channel(limits::PIECES_AHEAD);
        let (tell, outcome) = oneshot::channel();
        thread::Builder::new()
            .name("afar-write-file".into())
            .spawn(move || {
                let _ = tell.send(write_all(file, incoming));
            })
            .map_err(|error| Error::io("start a writing thread", &error))?;
        Ok(Self { unfinished, target: target.to_owned(), pieces, outcome })
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        match (&mut self.outcome).await {
            Ok(Err(error)) => Err(self.wrong(&error)),
            _ => Err(Error::new(Kind::Failed, format!("{}: writing stopped", self.target.display()))),
        }
    }

    /// Verified, synced, renamed: in this order.
    async fn finish(self, info: &Info) -> Result<(), Error> {
        drop(self.pieces);
        let wrong = |error: &io::Error| Error::io(self.target.display(), error);
        let found = self.outcome.await.map_err(|_| Error::new(Kind::Failed, format!("{}: writing stopped", self.target.display())))?;
        check_whole(info, &found.map_err(|error| wrong(&error))?)?;
        self.unfinished.persist(&self.target).map_err(|error| wrong(&error.error))?;
        File::open(folder_of(&self.target)).and_then(|folder| folder.sync_all()).map_err(|error| wrong(&error))
    }

    fn wrong(&self, error: &io::Error) -> Error {
        Error::io(self.target.display(), error)
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn write_all(mut file: File, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<ObjectId> {
    let mut hasher = blake3::Hasher::new();
    while let Some(piece) = pieces.blocking_recv() {
        hasher.update(&piece);
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(ObjectId::from_bytes(*hasher.finalize().as_bytes()))
}
