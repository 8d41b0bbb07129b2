//! A connection of a stand-in runner.
//!
//! The runner asks for `GET /_sim/runner/v1/session` with `Upgrade: sim-runner` and its JIT config. From
//! then on the connection is the simulator's own protocol, which asks for no second program on the
//! runner's side:
//!
//! ```text
//! simulator: job LENGTH\n<that many bytes of bash>     or  leave\n
//! runner:    picked-up · step N begins · step N ends HOW CODE · done HOW
//!            (each behind a mark, see `stream`; everything else is the job's log)
//! simulator: cancel\n  at any time;  bye\n  after done
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::script::script;
use super::stream::{Piece, Splitter};
use crate::error::SimError;
use crate::model::{Conclusion, JobId, Orders, RunnerId};
use crate::shared::Shared;

const READ_BYTES: usize = 32 << 10;

/// A runner's connection; its end is noted however it comes.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    pub(crate) runner: RunnerId,
    number: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.with(|world, now| world.disconnect_runner(self.runner, self.number, now));
    }
}

impl Session {
    /// Connects the runner with this secret.
    pub(crate) fn open(shared: &Arc<Shared>, secret: &str) -> Result<Self, SimError> {
        let (runner, number) = shared.with(|world, now| world.connect_runner(secret, now))?;
        Ok(Self { shared: Arc::clone(shared), runner, number })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits until the runner has other orders than `known`.
    pub(crate) async fn orders_other_than(&self, known: Orders) -> Orders {
        self.shared
            .wait(|world| {
                let orders = world.orders(self.runner, self.number);
                (orders != known).then_some(orders)
            })
            .await
    }

    pub(crate) fn pick_up(&self, job: JobId) -> Result<(), SimError> {
        self.shared.with(|world, now| world.pick_up(self.runner, self.number, job, now))
    }

    pub(crate) fn finish(&self, job: JobId, how: Conclusion) -> Result<(), SimError> {
        self.shared.with(|world, now| world.finish_job(self.runner, self.number, job, how, now))
    }

    /// Speaks with a runner until one side leaves.
    ///
    /// `socket` is what `stream` goes over, if it is one.
    pub(crate) async fn serve<S>(
        self,
        mut stream: S,
        socket: Option<Arc<OwnedFd>>,
    ) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut byte = [0_u8; 1];
        let job = tokio::select! {
            orders = self.orders_other_than(Orders::Wait) => match orders {
                Orders::Run(job) => job,
                Orders::Wait | Orders::Stop(_) | Orders::Leave => {
                    stream.write_all(b"leave\n").await?;
                    return stream.shutdown().await;
                }
            },
            // A waiting runner has nothing to say: this is its end.
            _ = stream.read(&mut byte) => return Ok(()),
        };
        let nonce = self.shared.with(|world, _| world.random.alphanumeric(12));
        let assignment = self.shared.with(|world, _| world.assignment(job, self.runner));
        let Some(assignment) = assignment else { return Ok(()) };
        let program = script(&assignment, &nonce);
        stream.write_all(format!("job {}\n{program}", program.len()).as_bytes()).await?;
        self.follow(stream, socket, job, Splitter::new(&nonce)).await
    }

    /// Follows a job until it is done.
    async fn follow<S>(
        &self,
        stream: S,
        socket: Option<Arc<OwnedFd>>,
        job: JobId,
        mut splitter: Splitter,
    ) -> std::io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut buffer = vec![0_u8; READ_BYTES];
        let mut known = Orders::Run(job);
        loop {
            tokio::select! {
                biased;
                count = reader.read(&mut buffer) => match count? {
                    0 => return Ok(()),
                    count => {
                        acknowledge(socket.as_deref());
                        let done = self.take(job, splitter.feed(&buffer[..count]));
                        if done {
                            writer.write_all(b"bye\n").await?;
                            return writer.shutdown().await;
                        }
                    }
                },
                orders = self.orders_other_than(known) => {
                    known = orders;
                    match orders {
                        Orders::Stop(_) => writer.write_all(b"cancel\n").await?,
                        Orders::Leave => return writer.shutdown().await,
                        Orders::Wait | Orders::Run(_) => {}
                    }
                }
            }
        }
    }

    /// Enters what came from the runner; whether the job is done, or the runner has lost it.
    fn take(&self, job: JobId, pieces: Vec<Piece>) -> bool {
        let mut done = false;
        for piece in pieces {
            match piece {
                Piece::Output(bytes) => {
                    self.shared.with(|world, now| world.job_output(job, &bytes, now));
                }
                Piece::Words(words) => done |= self.hear(job, &words),
            }
        }
        done
    }

    fn hear(&self, job: JobId, words: &str) -> bool {
        let words: Vec<&str> = words.split(' ').collect();
        let how = |word: &str| match word {
            "success" => Conclusion::Success,
            "cancelled" => Conclusion::Cancelled,
            _ => Conclusion::Failure,
        };
        match words.as_slice() {
            ["picked-up"] => return self.pick_up(job).is_err(),
            ["step", index, "begins"] => {
                if let Ok(index) = index.parse() {
                    self.shared.with(|world, now| world.step_started(job, index, now));
                }
            }
            ["step", index, "ends", word, code] => {
                if let Ok(index) = index.parse() {
                    let how = how(word);
                    self.shared.with(|world, now| {
                        world.step_ended(job, index, how, now);
                        if how != Conclusion::Success {
                            let line =
                                format!("##[error]Process completed with exit code {code}.\n");
                            world.append_log(job, line.as_bytes(), now);
                        }
                    });
                }
            }
            ["done", word] => {
                if let Err(error) = self.finish(job, how(word)) {
                    tracing::debug!(%job, %error, "a runner finished a job that it does not have");
                }
                return true;
            }
            other => tracing::warn!(%job, ?other, "not understood from a runner"),
        }
        false
    }
}

/// Has the kernel acknowledge what arrived now instead of 40 ms later: a runner's shell writes little
/// at a time, and its kernel sends the next piece only when the last one is acknowledged.
fn acknowledge(socket: Option<&OwnedFd>) {
    if let Some(socket) = socket {
        // Only a matter of speed.
        let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
    }
}
