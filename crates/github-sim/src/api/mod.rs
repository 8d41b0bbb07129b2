//! GitHub's REST API: from a request to an answer, as plain functions over the model.
//!
//! The way of every request: user agent, operation, fault, authentication, budget, handler, entity
//! tag. Sockets are not handled here, nor is waiting: what a fault wants of the connection is part
//! of the [`Treated`] answer.

mod apps;
mod auth;
mod call;
mod hook;
mod page;
mod reply;
mod request;
mod route;
mod runners;
mod runs;
pub(crate) mod shape;

use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use request::{MAX_RECORDED, MAX_RECORDED_BODY, Recorded};
pub use route::OPERATIONS;

pub(crate) use reply::{Body, Reply};
pub(crate) use request::{Request, percent_encode};
pub(crate) use route::{Operation, route};

use crate::model::{ApiEffect, Budget, DeliveryId, Moment, World};
use call::Call;

/// How an answer leaves the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// As it is.
    Send,
    /// Never; the connection stays open.
    Hang,
    /// Not at all; the connection breaks.
    Break,
    /// Cut off in the middle.
    Maim,
}

/// An answer and how it is to be treated.
#[derive(Debug)]
pub(crate) struct Treated {
    pub(crate) reply: Reply,
    pub(crate) treatment: Treatment,
    /// A webhook delivery that is to be made again.
    pub(crate) redeliver: Option<DeliveryId>,
}

impl Treated {
    const fn plain(reply: Reply) -> Self {
        Self { reply, treatment: Treatment::Send, redeliver: None }
    }
}

/// The fault that strikes this request, if any, decided once per request.
pub(crate) fn strike(world: &mut World, operation: Option<&Operation>) -> Option<ApiEffect> {
    let World { faults, random, .. } = world;
    faults.for_request(operation?.id(), random)
}

/// How long a struck request waits before anything happens.
pub(crate) fn delay(fault: Option<&ApiEffect>) -> Option<Duration> {
    match fault {
        Some(ApiEffect::Slow { ms }) => Some(Duration::from_millis(*ms)),
        Some(_) | None => None,
    }
}

/// Answers a request.
pub(crate) fn answer(
    world: &mut World,
    request: &Request,
    operation: Option<&Operation>,
    fault: Option<&ApiEffect>,
    now: Moment,
) -> Treated {
    let api_now = now.skewed(world.faults.clock_skew_s);
    let mut treated = match refused(fault, api_now) {
        Some(refused) => refused,
        None => {
            let mut treated = operation_answer(world, request, operation, now, api_now);
            treated.treatment = match fault {
                Some(ApiEffect::LoseResponse) => Treatment::Break,
                Some(ApiEffect::MalformedJson) => Treatment::Maim,
                Some(_) | None => Treatment::Send,
            };
            treated
        }
    };
    treated.reply = treated
        .reply
        .header("date", api_now.http_date())
        .header("server", "github-sim")
        .header("x-github-media-type", "github.v3; format=json")
        .header("x-github-request-id", world.random.hex(20));
    treated
}

/// The answer of a fault that keeps the request from taking effect.
fn refused(fault: Option<&ApiEffect>, api_now: Moment) -> Option<Treated> {
    let reply = match fault? {
        ApiEffect::Status { status } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Reply::error(status, "Something went wrong on purpose")
        }
        ApiEffect::Hang => {
            return Some(Treated {
                reply: Reply::empty(StatusCode::OK),
                treatment: Treatment::Hang,
                redeliver: None,
            });
        }
        ApiEffect::PrimaryLimit { reset_s } => {
            let reset = api_now.secs() + reset_s;
            budget_headers(
                Reply::forbidden("API rate limit exceeded for installation."),
                Budget { limit: 5_000, used: 5_000, reset },
            )
        }
        ApiEffect::SecondaryLimit { retry_after_s } => {
            let reply = Reply::forbidden(
                "You have exceeded a secondary rate limit. Please wait a few minutes before you \
                 try again.",
            );
            match retry_after_s {
                Some(secs) => reply.header("retry-after", secs.to_string()),
                None => reply,
            }
        }
        ApiEffect::RefuseToken => Reply::unauthorized("Bad credentials"),
        ApiEffect::Slow { .. } | ApiEffect::LoseResponse | ApiEffect::MalformedJson => return None,
    };
    Some(Treated::plain(reply))
}

fn operation_answer(
    world: &mut World,
    request: &Request,
    operation: Option<&Operation>,
    now: Moment,
    api_now: Moment,
) -> Treated {
    if request.header("user-agent").is_none_or(str::is_empty) {
        return Treated::plain(Reply::text(
            StatusCode::FORBIDDEN,
            "Request forbidden by administrative rules. Please make sure your request has a \
             User-Agent header.",
        ));
    }
    let principal = match auth::principal(world, request.header("authorization"), api_now) {
        Ok(principal) => principal,
        Err(refused) => return Treated::plain(refused),
    };
    let Some(operation) = operation else {
        return Treated::plain(Reply::not_found());
    };
    let (payer, limit) = (principal.payer(), world.settings.rate_limit);
    if *operation != Operation::RateLimit && world.limits.is_exhausted(payer, limit, now) {
        let budget = world.limits.charge(payer, limit, 0, now);
        let reply = Reply::forbidden("API rate limit exceeded for installation.");
        return Treated::plain(budget_headers(reply, budget));
    }
    let mut call = Call { request, principal, now, api_now, redeliver: None };
    let reply = call.answer(world, operation);
    let reply = tagged(request, reply);
    let free = reply.status == StatusCode::NOT_MODIFIED || *operation == Operation::RateLimit;
    let budget = world.limits.charge(payer, limit, u64::from(!free), now);
    Treated {
        reply: budget_headers(reply, budget),
        treatment: Treatment::Send,
        redeliver: call.redeliver,
    }
}

fn budget_headers(reply: Reply, budget: Budget) -> Reply {
    reply
        .header("x-ratelimit-limit", budget.limit.to_string())
        .header("x-ratelimit-remaining", budget.remaining().to_string())
        .header("x-ratelimit-used", budget.used.to_string())
        .header("x-ratelimit-reset", budget.reset.to_string())
        .header("x-ratelimit-resource", "core")
}

/// Adds the entity tag of a good answer; an answer that the client has already becomes 304.
fn tagged(request: &Request, mut reply: Reply) -> Reply {
    let get = request.method == hyper::Method::GET;
    let Body::Json(value) = &reply.body else { return reply };
    if !get || reply.status != StatusCode::OK {
        return reply;
    }
    let bytes = text(value);
    let tag = format!("W/\"{}\"", hex::encode(&Sha256::digest(&bytes)[..16]));
    let known = request.header("if-none-match").is_some_and(|tags| {
        tags.split(',').any(|there| there.trim() == tag || there.trim() == "*")
    });
    if known {
        return Reply::empty(StatusCode::NOT_MODIFIED).header("etag", tag);
    }
    reply.body = Body::Raw { content_type: JSON, bytes: bytes.into() };
    reply.header("etag", tag).header("cache-control", "private, max-age=60, s-maxage=60")
}

/// The content type of the API's answers.
pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// JSON as bytes. A `Value` always has a text.
pub(crate) fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
