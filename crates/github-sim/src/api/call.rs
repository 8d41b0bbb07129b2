//! A request on its way through the API: who asks, when, and the operation's handler.

use hyper::StatusCode;

use super::auth::Principal;
use super::page::Page;
use super::reply::Reply;
use super::request::Request;
use super::route::{Operation, Slug};
use super::{apps, hook, runners, runs};
use crate::model::{AccountKind, DeliveryId, Moment, RepositoryId, World};

/// What a handler answers; errors are answers too.
pub(super) type Answer = Result<Reply, Reply>;

/// A request and what is known about it.
pub(super) struct Call<'r> {
    pub(super) request: &'r Request,
    pub(super) principal: Principal,
    pub(super) now: Moment,
    /// The time by the API's clock, which may go wrong.
    pub(super) api_now: Moment,
    /// A webhook delivery that is to be made again.
    pub(super) redeliver: Option<DeliveryId>,
}

impl Call<'_> {
    /// The repository that the path names, if the token covers it and grants the permission.
    pub(super) fn repository(
        &self,
        world: &World,
        slug: &Slug,
        permission: &str,
        access: &str,
    ) -> Result<RepositoryId, Reply> {
        let (id, selection) = match &self.principal {
            Principal::Installation { id, selection, .. } => (id, selection),
            Principal::Anonymous | Principal::App(_) => {
                self.principal.require(permission, access)?;
                return Err(Reply::not_found());
            }
        };
        let repo = world.repository_named(&slug.0).map_err(|_| Reply::not_found())?;
        let covered = world
            .installations
            .get(id)
            .is_some_and(|there| world.covered(there, selection).any(|covered| covered.id == repo));
        if !covered {
            return Err(Reply::not_found());
        }
        self.principal.require(permission, access)?;
        Ok(repo)
    }

    /// The reply with its `Link` header.
    pub(super) fn linked(&self, page: Page, total: usize, reply: Reply) -> Reply {
        match page.link(self.request, total) {
            Some(link) => reply.header("link", link),
            None => reply,
        }
    }

    /// Carries the operation out.
    pub(super) fn answer(&mut self, world: &mut World, operation: &Operation) -> Reply {
        use Operation as Op;
        let answer = match operation {
            Op::App => apps::app(world, self),
            Op::Installations => apps::installations(world, self),
            Op::Installation(id) => apps::installation(world, self, *id),
            Op::CreateToken(id) => apps::create_token(world, self, *id),
            Op::RepositoryInstallation(slug) => apps::repository_installation(world, self, slug),
            Op::OrganizationInstallation(login) => {
                apps::account_installation(world, self, login, AccountKind::Organization)
            }
            Op::UserInstallation(login) => {
                apps::account_installation(world, self, login, AccountKind::User)
            }
            Op::InstallationRepositories => apps::repositories(world, self),
            Op::RevokeToken => apps::revoke_token(world, self),
            Op::RateLimit => apps::rate_limit(world, self),
            Op::HookConfig => hook::config(world, self),
            Op::Deliveries => hook::deliveries(world, self),
            Op::Delivery(id) => hook::delivery(world, self, *id),
            Op::Redeliver(id) => hook::redeliver(world, self, *id),
            Op::Runs(slug) => runs::runs(world, self, slug),
            Op::Run(slug, id) => runs::run(world, self, slug, *id),
            Op::RunJobs(slug, id) => runs::jobs(world, self, slug, *id, None),
            Op::AttemptJobs(slug, id, n) => runs::jobs(world, self, slug, *id, Some(*n)),
            Op::Job(slug, id) => runs::job(world, self, slug, *id),
            Op::JobLogs(slug, id) => runs::job_logs(world, self, slug, *id),
            Op::CancelRun(slug, id) => runs::cancel(world, self, slug, *id, false),
            Op::ForceCancelRun(slug, id) => runs::cancel(world, self, slug, *id, true),
            Op::Runners(slug) => runners::runners(world, self, slug),
            Op::RunnerDownloads(slug) => runners::downloads(world, self, slug),
            Op::GenerateJitConfig(slug) => runners::generate_jit_config(world, self, slug),
            Op::Runner(slug, id) => runners::runner(world, self, slug, *id),
            Op::DeleteRunner(slug, id) => runners::delete(world, self, slug, *id),
            Op::RunnerLabels(slug, id) => runners::labels(world, self, slug, *id),
        };
        let reply = answer.unwrap_or_else(|error| error);
        debug_assert!(reply.status != StatusCode::CONTINUE, "a final status");
        reply
    }
}
