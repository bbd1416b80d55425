//! Looks at the services themselves: `/metrics` and `/ready` of every replica, several times.

use std::time::Duration;

use caracal_capacity::{Look, Observation, Ready, Service, Target, exposition};
use caracal_model::Secret;
use futures_util::future::{join, join_all};
use http::StatusCode;

use super::Eye;
use crate::web::{Call, NoAnswer};

/// How long a replica may take to answer.
const WITHIN: Duration = Duration::from_secs(5);
/// What is said of a replica that keeps its numbers to itself.
pub const REFUSED: &str = "it does not show its metrics to us";
/// Looks at each replica, the first and the last included.
pub const LOOKS: u32 = 6;

/// Looks at all of them for as long as the eye is to look.
pub async fn look(
    eye: &Eye,
    targets: &[(Service, String)],
    bearer: Option<&Secret<String>>,
) -> Observation {
    let each = targets
        .iter()
        .map(|(service, url)| replica(eye, *service, url, bearer));
    Observation {
        targets: join_all(each).await,
        ..Observation::default()
    }
}

async fn replica(
    eye: &Eye,
    service: Service,
    url: &str,
    bearer: Option<&Secret<String>>,
) -> Target {
    let began = eye.clock.ticks();
    let (mut looks, mut silent) = (Vec::new(), None);
    for n in 0..LOOKS {
        let due = eye.over * n / (LOOKS - 1);
        // A look that took long does not shift those after it.
        tokio::time::sleep(due.saturating_sub(eye.clock.ticks().since(began))).await;
        let (metrics, ready) = join(metrics(eye, url, bearer), ready(eye, url)).await;
        let at = eye.clock.ticks().since(began).as_secs_f64();
        let samples = match metrics {
            Ok(samples) => {
                silent = None;
                samples
            }
            Err(why) => {
                silent = Some(why);
                Vec::new()
            }
        };
        looks.push(Look { at, samples, ready });
    }
    Target {
        service,
        instance: url.to_owned(),
        looks,
        silent,
    }
}

async fn metrics(
    eye: &Eye,
    url: &str,
    bearer: Option<&Secret<String>>,
) -> Result<Vec<exposition::Sample>, String> {
    let mut call = Call::get(format!("{url}/metrics"));
    if let Some(bearer) = bearer {
        call = call
            .bearer(bearer.expose())
            .map_err(|error| error.to_string())?;
    }
    let answer = eye.web.send(call, WITHIN).await.map_err(told)?;
    match answer.status {
        StatusCode::OK => {}
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            return Err(format!("{REFUSED} ({})", status.as_u16()));
        }
        status => return Err(format!("{} for /metrics", status.as_u16())),
    }
    let text = str::from_utf8(&answer.body).map_err(|_| "its metrics are no text".to_owned())?;
    exposition::parse(text).map_err(|error| format!("its metrics cannot be read: {error}"))
}

fn told(none: NoAnswer) -> String {
    match none {
        NoAnswer::Unreachable => "nobody answers".to_owned(),
        NoAnswer::Timeout => format!("no answer within {} s", WITHIN.as_secs()),
    }
}

async fn ready(eye: &Eye, url: &str) -> Ready {
    match eye
        .web
        .send(Call::get(format!("{url}/ready")), WITHIN)
        .await
    {
        Ok(answer) if answer.status.is_success() => Ready::Yes,
        Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
            let reason = answer.code();
            let said = !reason.is_empty();
            Ready::No(if said {
                reason
            } else {
                "it does not say why".to_owned()
            })
        }
        // Not the answer of a service, or that we ask too often.
        Ok(_) => Ready::Unknown,
        Err(_) => Ready::Silent,
    }
}
