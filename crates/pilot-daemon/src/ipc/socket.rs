//! Creating and removing the socket file (spec 07 section 1).

use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error(
        "another daemon is already listening on {}; stop it (pilotctl daemon stop) or choose another path with --socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// The path is taken by something that is no socket, or by a socket of somebody else.
    #[error("{} exists and {reason}; remove it or choose another path with --socket", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
        /// Why it was left alone.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot create the IPC socket {}: {error}; choose another path with --socket", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Cause.
        error: io::Error,
    },
}

/// A listening socket with a name in the file system, removed when dropped if the name is still ours.
#[derive(Debug)]
pub(crate) struct PublishedSocket {
    pub(crate) listener: UnixListener,
    /// The only user whose clients are served: ours.
    pub(crate) uid: u32,
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for PublishedSocket {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Checks that nobody listens on `path`: a socket that answers is never taken over.
pub(crate) async fn ensure_free(path: &Path) -> Result<(), SocketError> {
    let occupied = |reason: String| Err(SocketError::Occupied { path: path.to_owned(), reason });
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return occupied(format!("cannot be looked at ({error})")),
        Ok(meta) if !meta.file_type().is_socket() => return occupied("is not a socket".into()),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        // A full backlog is a daemon too.
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => occupied(format!("cannot be connected to ({error})")),
    }
}

impl PublishedSocket {
    /// Listens on `path`, which appears complete and with mode 0600, or not at all.
    pub(crate) async fn create(path: &Path) -> Result<PublishedSocket, SocketError> {
        ensure_free(path).await?;
        Self::create_at(path).map_err(|error| SocketError::Io { path: path.to_owned(), error })
    }

    fn create_at(path: &Path) -> io::Result<PublishedSocket> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let private = private_dir(parent)?;
        let hidden = private.join("s");
        let result = UnixListener::bind(&hidden).and_then(|listener| {
            std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
            let meta = std::fs::symlink_metadata(&hidden)?;
            std::fs::rename(&hidden, path)?;
            Ok(PublishedSocket {
                listener,
                uid: meta.uid(),
                path: path.to_owned(),
                inode: (meta.dev(), meta.ino()),
            })
        });
        if result.is_err() {
            let _ = std::fs::remove_file(&hidden);
        }
        let _ = std::fs::remove_dir(&private);
        result
    }
}

/// A new directory `.pilot-sock-XXXX` with mode 0700, so that nobody connects before the mode of the socket is set.
fn private_dir(parent: &Path) -> io::Result<PathBuf> {
    let mut attempt = 0u64;
    loop {
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u64(attempt);
        let dir = parent.join(format!(".pilot-sock-{:04x}", hasher.finish() & 0xFFFF));
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 64 => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_appears_private_and_disappears_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pilot.sock");
        let socket = PublishedSocket::create(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the private directory is gone");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_never_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pilot.sock");
        let first = PublishedSocket::create(&path).await.unwrap();
        let error = PublishedSocket::create(&path).await.unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        assert!(error.to_string().contains("pilotctl daemon stop"), "{error}");
        UnixStream::connect(&path).await.unwrap();
        drop(first);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_but_another_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pilot.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = PublishedSocket::create(&path).await.unwrap();
        // Somebody else's file under our name is not removed with us.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(socket);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let error = PublishedSocket::create(&path).await.unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
    }
}
