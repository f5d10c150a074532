//! The disk, as far as the log needs one: the only module that touches files, and the only one that syncs.
//!
//! Everything else goes through [`Disk`] and [`DiskFile`], so that the crash tests can put a disk underneath that drops,
//! tears and reorders whatever was not synced. Nothing here retries a sync: after a failed `fdatasync` the kernel may have
//! thrown the dirty pages away and called them clean, so a second one that succeeds means nothing.
use rustix::{
    fs::{Advice, FallocateFlags},
    io::{Errno, ReadWriteFlags},
};
use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, IoSlice, IoSliceMut, Write as _},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How often a [`FaultyDisk`] looks whether it may go on.
const HOLD_LOOK_EVERY: Duration = Duration::from_millis(2);

/// Which file it is: changes when a file is replaced by another of the same name, or another disk is mounted over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The file system.
    pub device: u64,
    /// The inode there.
    pub inode: u64,
}

/// What identifies a file's present content without reading it (rule 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Which file.
    pub id: FileId,
    /// Length in bytes.
    pub length: u64,
}

impl FileStat {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { id: FileId { device: metadata.dev(), inode: metadata.ino() }, length: metadata.len() }
    }
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Its size in bytes.
    pub capacity: u64,
    /// Bytes that this process may still use.
    pub free: u64,
}

/// An exclusive lock, held until dropped.
pub trait Lock: Send + Sync + fmt::Debug {}

/// A file of the log.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Writes some of the pieces at an offset; returns how many bytes. May be short.
    ///
    /// # Errors
    /// As the system says; `StorageFull` where there is no room.
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Reads some bytes at an offset; 0 at the end. May be short.
    ///
    /// # Errors
    /// As the system says.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads at an offset onto the end of a buffer, into the room that it has left, which need not be cleared for that; 0 at
    /// the end. May be short.
    ///
    /// # Errors
    /// As the system says.
    fn read_onto(&self, onto: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        let length = onto.len();
        onto.resize(onto.capacity(), 0);
        let read = self.read_at(onto.get_mut(length..).unwrap_or_default(), offset);
        onto.truncate(length + *read.as_ref().unwrap_or(&0));
        read
    }
    /// As [`DiskFile::read_at`], of what is in memory already: never waits for a device. May be short for that reason, too.
    ///
    /// # Errors
    /// `WouldBlock` if nothing of it is in memory, `Unsupported` where that cannot be told, or as the system says.
    fn read_cached_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes content and length durable.
    ///
    /// # Errors
    /// Final: whatever was not durable before counts as lost.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    ///
    /// # Errors
    /// As the system says.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Which file, and its length.
    ///
    /// # Errors
    /// As the system says.
    fn stat(&self) -> io::Result<FileStat>;
    /// Reserves room without changing the length.
    ///
    /// # Errors
    /// `StorageFull` where there is no room; `Unsupported` where that cannot be done ahead.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Drops clean pages of a range from the page cache and starts to write back dirty ones; waits for neither. A hint.
    fn forget(&self, offset: u64, length: u64);
    /// Whether [`DiskFile::forget`] has an effect here, so that a read after it comes from the device.
    fn can_forget(&self) -> bool;
}

/// A file system.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a file that must not exist yet, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`, or as the system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that exists.
    ///
    /// # Errors
    /// As the system says.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Names in a directory, unsorted.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// As the system says.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// Final, as for [`DiskFile::sync`].
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Renames, replacing what is there.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Which file a path names, and its length.
    ///
    /// # Errors
    /// As the system says.
    fn stat(&self, path: &Path) -> io::Result<FileStat>;
    /// Room on the file system of a directory.
    ///
    /// # Errors
    /// As the system says.
    fn space(&self, directory: &Path) -> io::Result<Space>;
    /// Takes an exclusive lock on a file, creating it if need be.
    ///
    /// # Errors
    /// `WouldBlock` if somebody else has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
}

/// What a [`FaultyDisk`] does to calls of `fdatasync`.
#[derive(Debug, Clone, Default)]
pub struct SyncFaults {
    /// After this many, every further one fails.
    pub fail_after: Option<u64>,
    /// While this file exists, none returns.
    pub hold: Option<PathBuf>,
}

/// The file systems of this machine, whose files fail to sync, or take their time: for tests of real nodes.
#[derive(Debug)]
pub struct FaultyDisk {
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Faults {
    left: AtomicU64,
    hold: Option<PathBuf>,
}

impl FaultyDisk {
    /// With these faults.
    pub fn new(faults: SyncFaults) -> Self {
        let left = AtomicU64::new(faults.fail_after.unwrap_or(u64::MAX));
        Self { faults: Arc::new(Faults { left, hold: faults.hold }) }
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, faults: Arc::clone(&self.faults) })
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
}

impl DiskFile for FaultyFile {
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.file.write_at(pieces, offset)
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(into, offset)
    }
    fn read_onto(&self, onto: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.file.read_onto(onto, offset)
    }
    fn read_cached_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_cached_at(into, offset)
    }
    fn sync(&self) -> io::Result<()> {
        while self.faults.hold.as_deref().is_some_and(Path::exists) {
            std::thread::sleep(HOLD_LOOK_EVERY);
        }
        let one_less = |left: u64| left.checked_sub(1);
        match self.faults.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less) {
            Ok(_) => self.file.sync(),
            Err(_) => Err(io::Error::other("made to fail by AFAR_TEST_FAIL_SYNC_AFTER")),
        }
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }
    fn stat(&self) -> io::Result<FileStat> {
        self.file.stat()
    }
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.allocate(offset, length)
    }
    fn forget(&self, offset: u64, length: u64) {
        self.file.forget(offset, length);
    }
    fn can_forget(&self) -> bool {
        self.file.can_forget()
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.create(path).map(|file| self.wrap(file))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path, write).map(|file| self.wrap(file))
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(directory)
    }
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.make_directory(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_directory(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        RealDisk.stat(path)
    }
    fn space(&self, directory: &Path) -> io::Result<Space> {
        RealDisk.space(directory)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        RealDisk.lock(path)
    }
}

/// The file systems of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile {
    file: File,
    /// On tmpfs: there is no device beneath.
    in_memory: bool,
}

impl RealFile {
    fn new(file: File) -> Self {
        let in_memory = rustix::fs::fstatfs(&file).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC);
        Self { file, in_memory }
    }
}

#[derive(Debug)]
struct RealLock {
    _file: File, // the lock goes when the file is closed
}

impl Lock for RealLock {}

impl DiskFile for RealFile {
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.file, pieces, offset)?)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(into, offset)
    }

    fn read_onto(&self, onto: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.file, rustix::buffer::spare_capacity(onto), offset)?)
    }

    fn read_cached_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.in_memory {
            return self.file.read_at(into, offset);
        }
        Ok(rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn stat(&self) -> io::Result<FileStat> {
        self.file.metadata().map(|metadata| FileStat::of(&metadata))
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.in_memory {
            // It would clear the very pages that are written next, and a page that is missing shows when writing as well.
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, length)?)
    }

    fn forget(&self, offset: u64, length: u64) {
        // Linux starts writeback of dirty pages in the range before it drops the clean ones.
        let _ = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(length), Advice::DontNeed);
    }

    fn can_forget(&self) -> bool {
        // tmpfs has no device to read from; everything else that Linux offers here does.
        !self.in_memory
    }
}

const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Records are not encrypted here: whoever may read a segment reads what was put, whatever umask the node was started with.
const FILE_MODE: u32 = 0o600;

/// Makes a directory, and those above it that are missing, for the node's own user alone. What is there stays as it is.
///
/// # Errors
/// What the system said.
pub fn make_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
        Ok(Arc::new(RealFile::new(file)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile::new(OpenOptions::new().read(true).write(write).open(path)?)))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        make_private_directory(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        fs::metadata(path).map(|metadata| FileStat::of(&metadata))
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(directory)?;
        let unit = stat.f_frsize;
        Ok(Space { capacity: stat.f_blocks.saturating_mul(unit), free: stat.f_bavail.saturating_mul(unit) })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // For people who wonder who has it; never read by us.
        let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(Box::new(RealLock { _file: file }))
    }
}

/// Fills a buffer from an offset.
///
/// # Errors
/// `UnexpectedEof` if the file ends before, or as the system says.
pub fn read_exact(file: &dyn DiskFile, into: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads so many bytes from an offset.
///
/// # Errors
/// `UnexpectedEof` if the file ends before, or as the system says.
pub fn read_whole(file: &dyn DiskFile, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match file.read_onto(&mut bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length); // what was allocated may be more than was asked for
    Ok(bytes)
}

/// Writes all pieces at an offset; they are consumed in the course of it.
///
/// # Errors
/// As the system says; some bytes may have been written then.
pub fn write_all(file: &dyn DiskFile, mut pieces: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut pieces, 0); // drops empty ones at the front
    while !pieces.is_empty() {
        let some = pieces.get(..PIECES_MAX).unwrap_or(pieces);
        match file.write_at(some, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Linux takes this many pieces in one call.
const PIECES_MAX: usize = 1024;

/// Reads a small file whole.
///
/// # Errors
/// `InvalidData` if it is longer than `bytes_max`, or as the system says.
pub fn read_small(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, false)?;
    let length = file.stat()?.length;
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes, at most {bytes_max} make sense")));
    }
    let mut content = vec![0; length as usize];
    read_exact(&*file, &mut content, 0)?;
    Ok(content)
}

/// Writes a small file so that after a crash either the old or the new content is there: temporary file, sync, rename,
/// sync of the directory.
///
/// # Errors
/// As the system says.
pub fn replace_small(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("new");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&temporary)?;
    write_all(&*file, &mut [IoSlice::new(content)], 0)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_directory(directory)
}

/// Whether an error means that a file is not there any more, as opposed to a disk that does not answer now.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::StaleNetworkFileHandle)
}

/// Whether an error means that the device cannot read what is there, as opposed to one that passes (memory, file handles) or
/// a file that is gone. Which number it is depends on the file system and on what broke.
pub fn is_unreadable(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::REMOTEIO | Errno::UCLEAN | Errno::BADMSG))
}

/// Whether an error means that there is no room, as opposed to a broken disk.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
