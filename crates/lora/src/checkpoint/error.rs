//! What can be wrong with a merge of a whole checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use infer_accel_tensor::ErrorKind;
use thiserror::Error;

/// Why a checkpoint was not written. The base is never touched; the output directory is absent or whole.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused to read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The operating system refused to write.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No space is left, or a quota or limit is reached.
    #[error(
        "cannot write {}: {source}; about {missing} more bytes are needed: make space and repeat the call, which goes \
         on where it stopped (finished work lies in {})",
        path.display(),
        staging.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// Where unfinished work lies.
        staging: PathBuf,
        /// Bytes of tensors that are not written yet.
        missing: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A directory without a checkpoint that can be served, or whose parts contradict each other.
    #[error("{}: {problem}", path.display())]
    Base {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// An output directory that must not be written.
    #[error("out_dir {}: {problem}", path.display())]
    Output {
        /// The directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// An adapter that does not fit the checkpoint.
    #[error("{adapter}: {problem}")]
    Adapter {
        /// Which adapter.
        adapter: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A tensor that cannot be merged or taken back.
    #[error("{name}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        source: Box<crate::Error>,
    },
    /// An argument that is not allowed.
    #[error("{0}")]
    Argument(String),
    /// Another process writes the same output.
    #[error("{} is locked: another process is writing this output; wait for it", path.display())]
    Busy {
        /// The directory of unfinished work.
        path: PathBuf,
    },
    /// Unfinished work that was begun with something else.
    #[error(
        "{} holds unfinished work of another call ({difference}); repeat that call to finish it, or pass resume=False \
         to discard it",
        path.display()
    )]
    OtherWork {
        /// The directory of unfinished work.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Bytes that are not what they should be.
    #[error("{}: {problem}", path.display())]
    Integrity {
        /// The file.
        path: PathBuf,
        /// What was found, and what to do.
        problem: String,
    },
    /// The call was asked to stop. What is finished stays, for a later call to go on with.
    #[error("the call was interrupted; repeat it to go on where it stopped")]
    Interrupted,
}

impl CheckpointError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::Full { .. } | Self::Busy { .. } => {
                ErrorKind::Storage
            }
            Self::Base { .. } | Self::Output { .. } | Self::OtherWork { .. } => ErrorKind::Checkpoint,
            Self::Adapter { .. } => ErrorKind::Adapter,
            Self::Tensor { source, .. } => source.kind(),
            Self::Argument(_) => ErrorKind::Argument,
            Self::Integrity { .. } => ErrorKind::Integrity,
            Self::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "storage.read",
            Self::Write { .. } => "storage.write",
            Self::Full { .. } => "storage.full",
            Self::Busy { .. } => "storage.busy",
            Self::Base { .. } => "checkpoint.base",
            Self::Output { .. } => "checkpoint.output",
            Self::OtherWork { .. } => "checkpoint.other_work",
            Self::Adapter { .. } => "adapter.checkpoint",
            Self::Tensor { source, .. } => source.code(),
            Self::Argument(_) => "argument.checkpoint",
            Self::Integrity { .. } => "integrity.checkpoint",
            Self::Interrupted => "interrupted",
        }
    }

    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { path: path.to_owned(), source }
    }

    /// Says how much space is missing where the reason is that there is none.
    pub(super) fn or_full(self, staging: &Path, missing: u64) -> Self {
        match self {
            Self::Write { path, source } if is_full(&source) => {
                Self::Full { path, staging: staging.to_owned(), missing, source }
            }
            other => other,
        }
    }
}

/// Whether a write failed because nothing more may be stored.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
