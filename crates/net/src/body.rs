//! Reading a whole body, bounded in size and in time.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use crate::problem::Problem;

/// What is taken in of a body that is too large, and for how long. To close a connection with bytes
/// unread resets it, and the caller, who still sends, may never see why it was refused.
const LEFT_OVER: usize = 4 * 1024 * 1024;
const LEFT_OVER_WITHIN: Duration = Duration::from_secs(1);

/// Reads a body of at most `limit` bytes. One that is larger is refused; a small rest of it is taken
/// in and thrown away first, so that the answer arrives.
///
/// # Errors
/// 413 `payload_too_large`, 408 `request_timeout`, 400 `invalid_request` when the caller broke off.
pub async fn read(mut body: Body, limit: usize, within: Duration) -> Result<Bytes, Problem> {
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if declared > limit {
        if declared <= LEFT_OVER {
            discard(&mut body).await;
        }
        return Err(too_large());
    }
    match tokio::time::timeout(within, collect(&mut body, limit)).await {
        Ok(read) => read,
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout")
            .because("the request body did not arrive in time")),
    }
}

async fn discard(body: &mut Body) {
    let mut left = LEFT_OVER;
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Whoever sends slowly is answered all the same.
    let _ = tokio::time::timeout(LEFT_OVER_WITHIN, rest).await;
}

async fn collect(body: &mut Body, limit: usize) -> Result<Bytes, Problem> {
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_request")
                .because("the request body broke off")
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + parts.len() + data.len() > limit {
            discard(body).await;
            return Err(too_large());
        }
        // Nearly every body arrives in one frame: it is handed on without a copy.
        if whole.is_empty() && parts.is_empty() {
            whole = data;
        } else {
            parts.extend_from_slice(&std::mem::take(&mut whole));
            parts.extend_from_slice(&data);
        }
    }
    Ok(if parts.is_empty() {
        whole
    } else {
        parts.freeze()
    })
}

/// 413.
pub fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large")
        .because("request body too large")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    const SOON: Duration = Duration::from_secs(5);

    fn chunks(parts: &[&'static str]) -> Body {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| Ok::<_, std::io::Error>(*part))
            .collect();
        Body::from_stream(stream::iter(parts))
    }

    #[tokio::test]
    async fn a_body_is_read_whole_up_to_the_limit() {
        assert_eq!(
            read(chunks(&["ab", "cd", "e"]), 5, SOON).await.unwrap(),
            "abcde"
        );
        assert_eq!(read(Body::empty(), 0, SOON).await.unwrap(), "");
        for body in [chunks(&["ab", "cd", "ef"]), Body::from("abcdef")] {
            assert_eq!(read(body, 5, SOON).await.unwrap_err().status(), 413);
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = Body::from_stream(stream::pending::<Result<&str, std::io::Error>>());
        let refused = read(never, 5, Duration::from_millis(5)).await.unwrap_err();
        assert_eq!(refused.status(), 408);
    }
}
