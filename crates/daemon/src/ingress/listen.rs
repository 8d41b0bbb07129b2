//! Sockets, and HTTP connections that cannot be held open for nothing.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::crowd::Crowd;

/// The most connections at a time, beside one that waits for a place; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// The most bytes of a connection that are read ahead, and of a request's head.
const HEAD_LEN_MAX: usize = 64 << 10;
/// Time for a request's head to arrive; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest life of one connection, so that nobody keeps a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Connections that wait in the kernel's queue for one of these places.
const BACKLOG: u32 = 1024;
/// The permissions of a socket until it has its own.
const OWNER_ONLY: u32 = 0o600;
/// Pause after the operating system could not accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether strangers connect to a socket, who may be sent away for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strangers {
    /// The webhooks' socket.
    Expected,
    /// The control socket: nobody but Forrest's own user, who may follow along for long.
    KeptOut,
}

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    /// On a TCP address.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds a TCP address.
    ///
    /// # Errors
    /// What the operating system says, such as an address in use.
    pub(crate) async fn tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Tcp(TcpListener::bind(address).await?))
    }

    /// Binds a path with these permissions, replacing a socket that an earlier daemon left. With a
    /// group, the socket is made that group's.
    ///
    /// At no time can anybody connect who may not in the end: the kernel gives the new file the
    /// permissions that the socket has before it is bound.
    ///
    /// # Errors
    /// What the operating system says; also where something other than a socket is at the path.
    pub(crate) fn unix(path: &Path, mode: u32, group: Option<u32>) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => {
                let message = "something that is not a socket is in the way";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // A socket's path may be longer than the kernel takes; its directory is reached through a
        // descriptor then.
        let (dir, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?;
        let dir = rustix::fs::open(
            dir,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let short = Path::new("/proc/self/fd")
            .join(std::os::fd::AsRawFd::as_raw_fd(&dir).to_string())
            .join(name);
        let socket = UnixSocket::new_stream()?;
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(OWNER_ONLY))?;
        socket.bind(short)?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        Ok(Self::Unix(socket.listen(BACKLOG)?, path.to_owned()))
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("a TCP socket"),
            },
            Self::Unix(_, path) => write!(f, "{}", path.display()),
        }
    }
}

/// Serves a socket for ever.
pub(crate) async fn serve(listener: Listener, router: Router, strangers: Strangers) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let crowd = Crowd::default();
    loop {
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                // Answers are small and should not wait for more to come.
                let _ = stream.set_nodelay(true);
                Box::new(stream) as Box<dyn Stream>
            }),
            Listener::Unix(listener, _) => {
                listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>)
            }
        };
        match accepted {
            Ok(stream) => {
                let place = match strangers {
                    Strangers::Expected => crowd.make_room(&places).await,
                    Strangers::KeptOut => Arc::clone(&places).acquire_owned().await.ok(),
                };
                let Some(place) = place else { return };
                connection(stream, router.clone(), place, crowd.clone());
            }
            Err(error) => {
                tracing::warn!(%error, %listener, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn connection(stream: Box<dyn Stream>, router: Router, place: OwnedSemaphorePermit, crowd: Crowd) {
    tokio::spawn(async move {
        let member = Arc::new(crowd.join());
        let (served, inner) = (Arc::clone(&member), TowerToHyperService::new(router));
        let service = hyper::service::service_fn(move |request| {
            let (member, answer) = (Arc::clone(&served), inner.call(request));
            async move {
                let answer = answer.await;
                member.made_itself_useful();
                answer
            }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LEN_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = tokio::time::timeout(CONNECTION_TIMEOUT, served) => match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a client's connection failed"),
                Err(_) => tracing::debug!("a client's connection was kept for too long"),
            },
            () = member.sent_away() => tracing::debug!("a client had to make room for another one"),
        }
        drop(place);
    });
}
