//! Errors a user sees: a machine-readable code, a message, and what to do about it (spec 08 section 1.4).

use std::fmt;

/// Machine-readable error codes (spec 08 section 1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    NotRunning,
    ConnectionFailed,
    Timeout,
    Internal,
    PermissionDenied,
    TrustRequired,
    AuthRequired,
    NotSupported,
    NotImplemented,
    BroadcastFailed,
    IoError,
    /// The peer or its owner said no.
    Rejected,
}

impl Code {
    /// Every code with its meaning, for the catalogue of `context`.
    pub const ALL: &'static [(Code, &'static str)] = &[
        (Code::InvalidArgument, "a flag, argument or setting is wrong"),
        (Code::NotFound, "no such peer, file or message"),
        (Code::AlreadyExists, "already running or already there"),
        (Code::NotRunning, "the daemon or rendezvous is not running"),
        (Code::ConnectionFailed, "the peer, the registry or the daemon refused or could not be reached"),
        (Code::Timeout, "no answer in time"),
        (Code::Internal, "an unexpected failure; the message says where"),
        (Code::PermissionDenied, "the operating system denied access"),
        (Code::TrustRequired, "the peer is private and does not trust this node yet"),
        (Code::AuthRequired, "an admin token is needed"),
        (Code::NotSupported, "not possible on this system or with this peer"),
        (Code::NotImplemented, "the daemon or this version does not have it"),
        (Code::BroadcastFailed, "a broadcast was refused"),
        (Code::IoError, "reading or writing a file failed"),
        (Code::Rejected, "the peer's owner declined"),
    ];

    /// The code as printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "invalid_argument",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::NotRunning => "not_running",
            Code::ConnectionFailed => "connection_failed",
            Code::Timeout => "timeout",
            Code::Internal => "internal",
            Code::PermissionDenied => "permission_denied",
            Code::TrustRequired => "trust_required",
            Code::AuthRequired => "auth_required",
            Code::NotSupported => "not_supported",
            Code::NotImplemented => "not_implemented",
            Code::BroadcastFailed => "broadcast_failed",
            Code::IoError => "io_error",
            Code::Rejected => "rejected",
        }
    }
}

/// Exit status of a command that worked; nonzero only where the result itself is negative (all probes lost).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// Success.
    pub const OK: Exit = Exit(0);
    /// The command ran, its result is negative.
    pub const NEGATIVE: Exit = Exit(1);
}

/// What a command comes to.
pub type CliResult = Result<Exit, CliError>;

/// A failure as shown to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// Machine-readable code.
    pub code: Code,
    /// What went wrong; names the cause.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
    /// Exit status, 1 or 2.
    pub exit: u8,
}

impl CliError {
    /// An error with exit status 1 and no hint.
    pub fn new(code: Code, message: impl Into<String>) -> CliError {
        CliError { code, message: message.into(), hint: None, exit: 1 }
    }

    /// [`Code::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> CliError {
        CliError::new(Code::InvalidArgument, message)
    }

    /// [`Code::NotFound`].
    pub fn not_found(message: impl Into<String>) -> CliError {
        CliError::new(Code::NotFound, message)
    }

    /// [`Code::ConnectionFailed`].
    pub fn connection(message: impl Into<String>) -> CliError {
        CliError::new(Code::ConnectionFailed, message)
    }

    /// [`Code::Timeout`].
    pub fn timeout(message: impl Into<String>) -> CliError {
        CliError::new(Code::Timeout, message)
    }

    /// [`Code::Internal`].
    pub fn internal(message: impl Into<String>) -> CliError {
        CliError::new(Code::Internal, message)
    }

    /// A file operation failed; the code follows the cause.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> CliError {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            _ => Code::IoError,
        };
        CliError::new(code, format!("{what}: {error}"))
    }

    /// Adds what the user can do.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit status.
    pub fn exit(mut self, status: u8) -> CliError {
        self.exit = status;
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}
