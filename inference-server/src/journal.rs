//! An append-only journal: what a service must not forget is written here before anybody is told of it.
//!
//! A folder of segments `00000001.log`, `00000002.log`, …; a segment is a row of frames
//! `length u32 ‖ CRC-32 of the payload u32 ‖ payload`, integers big-endian. A new segment begins with records that hold
//! everything of the older ones which is still wanted (but for what is read by [`Location`]), so old segments can be
//! dropped whole.
//!
//! What always holds: records are on disk in the order in which they were enqueued; a record whose [`Pending`] has
//! resolved survives `kill -9` and loss of power; a frame that was torn by a crash at the end of the newest segment is cut
//! off at the next start, damage anywhere else is an error. After a failed write nothing more is accepted.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

/// Largest record.
pub const RECORD_BYTES_MAX: usize = 64 << 20;
/// Records waiting for the disk; at the limit callers are refused ([`JournalError::Busy`]).
const QUEUE_MAX: usize = 4_096;
/// Records that one flush takes along.
const BATCH_MAX: usize = 256;
const HEADER_BYTES: usize = 8;
/// How long a locked journal is waited for.
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// Why the journal cannot be opened, written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refuses.
    #[error("journal {path}: {reason}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process has it open.
    #[error("journal {path} is in use by another process: stop that one, or give this service a folder of its own")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Bytes that no crash leaves behind.
    #[error(
        "journal {path} is damaged at byte {offset}: {reason}; restore the file from a backup, or move the folder away to begin anew (unpaid answers are then lost)"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Too many records wait for the disk.
    #[error("the disk is too slow: {QUEUE_MAX} records wait to be written; try again")]
    Busy,
    /// An earlier write failed.
    #[error("the journal takes nothing more since a write failed: {0}; free the disk and restart the service")]
    Failed(String),
    /// Over [`RECORD_BYTES_MAX`].
    #[error("a record of {0} bytes is more than the journal takes")]
    TooLarge(usize),
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Number of the segment.
    pub segment: u64,
    /// Of the frame.
    pub offset: u64,
    /// Of the payload.
    pub length: u32,
}

enum Job {
    Append { payload: Vec<u8>, written: oneshot::Sender<Result<Location, JournalError>> },
    Rotate { first: Vec<Vec<u8>>, written: oneshot::Sender<Result<Location, JournalError>> },
    DropBefore(u64),
}

/// A record on its way to the disk; resolves when it is there. Dropping it changes nothing.
pub struct Pending(oneshot::Receiver<Result<Location, JournalError>>);

impl Pending {
    /// Waits for the disk.
    pub async fn durable(self) -> Result<Location, JournalError> {
        self.0.await.unwrap_or_else(|_| Err(JournalError::Failed("its thread has ended".into())))
    }
}

/// An open journal. Clones write to the same one; its thread ends with the last of them.
#[derive(Clone)]
pub struct Journal {
    folder: Arc<PathBuf>,
    jobs: mpsc::Sender<Job>,
}

impl Journal {
    /// Opens a folder (made if it is not there) and replays every record, oldest first. Also tells the newest segment.
    pub fn open(
        folder: &Path,
        mut replay: impl FnMut(Location, &[u8]) -> Result<(), String>,
    ) -> Result<(Self, u64), JournalError> {
        std::fs::create_dir_all(folder).map_err(|e| io(folder, &e))?;
        let lock_path = folder.join("lock");
        let lock = File::create(&lock_path).map_err(|e| io(&lock_path, &e))?;
        wait_for(&lock).map_err(|()| JournalError::Locked { path: folder.into() })?;
        let mut segments = list(folder)?;
        segments.sort_unstable();
        for (i, segment) in segments.iter().enumerate() {
            replay_segment(folder, *segment, i + 1 == segments.len(), &mut replay)?;
        }
        let newest = segments.last().copied().unwrap_or(1);
        let path = segment_path(folder, newest);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| io(&path, &e))?;
        let offset = file.seek(SeekFrom::End(0)).map_err(|e| io(&path, &e))?;
        sync_folder(folder)?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { folder: folder.into(), segment: newest, file, offset, failed: None, _lock: lock };
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| io(folder, &e))?;
        Ok((Self { folder: Arc::new(folder.into()), jobs }, newest))
    }

    /// Hands a record over. The order of calls is the order on disk, so call it while holding the lock on what it records.
    pub fn enqueue(&self, payload: Vec<u8>) -> Result<Pending, JournalError> {
        if payload.len() > RECORD_BYTES_MAX {
            return Err(JournalError::TooLarge(payload.len()));
        }
        let (written, pending) = oneshot::channel();
        self.send(Job::Append { payload, written })?;
        Ok(Pending(pending))
    }

    /// Begins a new segment with these records (at least one, which tells its number). Call it under the same lock.
    pub fn rotate(&self, first: Vec<Vec<u8>>) -> Result<Pending, JournalError> {
        let (written, pending) = oneshot::channel();
        self.send(Job::Rotate { first, written })?;
        Ok(Pending(pending))
    }

    /// Deletes the segments before this one.
    pub fn drop_before(&self, segment: u64) -> Result<(), JournalError> {
        self.send(Job::DropBefore(segment))
    }

    /// Reads a record again (blocking, one small file read).
    pub fn read(&self, location: Location) -> Result<Vec<u8>, JournalError> {
        let path = segment_path(&self.folder, location.segment);
        let mut file = File::open(&path).map_err(|e| io(&path, &e))?;
        let damaged = |reason: String| JournalError::Damaged { path: path.clone(), offset: location.offset, reason };
        file.seek(SeekFrom::Start(location.offset)).map_err(|e| io(&path, &e))?;
        let mut frame = vec![0; HEADER_BYTES + location.length as usize];
        file.read_exact(&mut frame).map_err(|e| damaged(e.to_string()))?;
        check_frame(&frame).map_err(damaged)?;
        Ok(frame.split_off(HEADER_BYTES))
    }

    fn send(&self, job: Job) -> Result<(), JournalError> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => JournalError::Busy,
            mpsc::error::TrySendError::Closed(_) => JournalError::Failed("its thread has ended".into()),
        })
    }
}

struct Writer {
    folder: PathBuf,
    segment: u64,
    file: File,
    offset: u64,
    failed: Option<String>,
    /// Held as long as the writer lives.
    _lock: File,
}

type Waiting = Vec<(oneshot::Sender<Result<Location, JournalError>>, Location)>;

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH_MAX);
        while queue.blocking_recv_many(&mut jobs, BATCH_MAX) > 0 {
            let (mut bytes, mut waiting) = (Vec::new(), Waiting::new());
            for job in jobs.drain(..) {
                match job {
                    Job::Append { payload, written } => {
                        let offset = self.offset + bytes.len() as u64;
                        waiting.push((written, self.location(offset, payload.len())));
                        frame(&mut bytes, &payload);
                    }
                    Job::Rotate { first, written } => {
                        self.flush(&mut bytes, &mut waiting);
                        if let Err(error) = self.next_segment() {
                            self.failed.get_or_insert(error.to_string());
                        }
                        waiting.push((written, self.location(0, first.first().map_or(0, Vec::len))));
                        first.iter().for_each(|payload| frame(&mut bytes, payload));
                    }
                    Job::DropBefore(segment) => {
                        self.flush(&mut bytes, &mut waiting);
                        self.drop_before(segment.min(self.segment));
                    }
                }
            }
            self.flush(&mut bytes, &mut waiting);
        }
    }

    fn location(&self, offset: u64, length: usize) -> Location {
        Location { segment: self.segment, offset, length: length as u32 }
    }

    /// Writes, waits for the disk, and tells those who wait.
    fn flush(&mut self, bytes: &mut Vec<u8>, waiting: &mut Waiting) {
        if self.failed.is_none()
            && !bytes.is_empty()
            && let Err(error) = self.file.write_all(bytes).and_then(|()| self.file.sync_data())
        {
            tracing::error!(%error, segment = self.segment, "the journal cannot be written; it takes nothing more");
            self.failed = Some(error.to_string());
        }
        self.offset += bytes.len() as u64;
        bytes.clear();
        for (written, location) in waiting.drain(..) {
            // Whoever waited may have gone away; the record is there all the same.
            let _ = written.send(match &self.failed {
                None => Ok(location),
                Some(reason) => Err(JournalError::Failed(reason.clone())),
            });
        }
    }

    fn next_segment(&mut self) -> Result<(), JournalError> {
        let path = segment_path(&self.folder, self.segment + 1);
        self.file = OpenOptions::new().create_new(true).append(true).open(&path).map_err(|e| io(&path, &e))?;
        (self.segment, self.offset) = (self.segment + 1, 0);
        sync_folder(&self.folder)
    }

    fn drop_before(&self, segment: u64) {
        for old in list(&self.folder).unwrap_or_default().into_iter().filter(|n| *n < segment) {
            let path = segment_path(&self.folder, old);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "an old journal segment cannot be deleted");
            }
        }
    }
}

/// Takes the lock; one that a stopping service still holds is waited for.
fn wait_for(lock: &File) -> Result<(), ()> {
    let begun = std::time::Instant::now();
    while lock.try_lock().is_err() {
        if begun.elapsed() > LOCK_WAIT {
            return Err(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

fn frame(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_be_bytes());
    out.extend_from_slice(payload);
}

fn header(frame: &[u8]) -> Option<(usize, u32)> {
    let length = u32::from_be_bytes(frame.get(..4)?.try_into().ok()?);
    let checksum = u32::from_be_bytes(frame.get(4..HEADER_BYTES)?.try_into().ok()?);
    Some((length as usize, checksum))
}

fn check_frame(frame: &[u8]) -> Result<(), String> {
    let (length, checksum) = header(frame).ok_or("the frame has no header")?;
    let payload = frame.get(HEADER_BYTES..).filter(|p| p.len() == length).ok_or("the frame has another length")?;
    if crc32fast::hash(payload) != checksum {
        return Err("the checksum is wrong".into());
    }
    Ok(())
}

fn replay_segment(
    folder: &Path,
    segment: u64,
    newest: bool,
    replay: &mut impl FnMut(Location, &[u8]) -> Result<(), String>,
) -> Result<(), JournalError> {
    let path = segment_path(folder, segment);
    let bytes = std::fs::read(&path).map_err(|e| io(&path, &e))?;
    let mut offset = 0;
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        let damaged = |reason: String| JournalError::Damaged { path: path.clone(), offset: offset as u64, reason };
        let end = header(rest).map(|(length, _)| HEADER_BYTES + length).filter(|end| *end <= rest.len());
        let sound = end
            .ok_or_else(|| "the frame is cut off".to_string())
            .and_then(|end| check_frame(&rest[..end]).map(|()| end));
        let end = match sound {
            Ok(end) => end,
            // Only the last write before a crash can be torn, and nothing was told of it.
            Err(reason) if newest && end.is_none_or(|end| end == rest.len()) => {
                tracing::warn!(path = %path.display(), offset, reason, "the journal's torn end is cut off");
                let file = OpenOptions::new().write(true).open(&path).map_err(|e| io(&path, &e))?;
                return file.set_len(offset as u64).and_then(|()| file.sync_all()).map_err(|e| io(&path, &e));
            }
            Err(reason) => return Err(damaged(reason)),
        };
        let location = Location { segment, offset: offset as u64, length: (end - HEADER_BYTES) as u32 };
        replay(location, &rest[HEADER_BYTES..end]).map_err(damaged)?;
        offset += end;
    }
    Ok(())
}

fn segment_path(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:08}.log"))
}

fn list(folder: &Path) -> Result<Vec<u64>, JournalError> {
    let entries = std::fs::read_dir(folder).map_err(|e| io(folder, &e))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect())
}

fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io(folder, &e))
}

fn io(path: &Path, error: &std::io::Error) -> JournalError {
    JournalError::Io { path: path.into(), reason: error.to_string() }
}

#[cfg(test)]
mod tests;
