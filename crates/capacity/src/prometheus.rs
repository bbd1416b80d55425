//! What the HTTP API of a Prometheus server answers to an instant query.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::exposition::{Sample, number};

/// Why an answer of a Prometheus server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrometheusError {
    /// It is not what its API answers with.
    #[error("this is not an answer of Prometheus: {0}")]
    Shape(#[from] serde_json::Error),
    /// It said why.
    #[error("Prometheus refused the query: {0}")]
    Refused(String),
    /// A query that answers with something else than a vector.
    #[error("Prometheus answered with a {0}, not with a vector")]
    NotAVector(String),
    /// A sample whose value is none.
    #[error("Prometheus answered with `{0}` for a number")]
    NotANumber(String),
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    #[serde(default)]
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Element {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// The samples of an instant vector.
pub fn vector(body: &[u8]) -> Result<Vec<Sample>, PrometheusError> {
    let answer: Answer = serde_json::from_slice(body)?;
    let data = match answer.data {
        Some(data) if answer.status == "success" => data,
        _ => {
            let why = answer
                .error
                .unwrap_or_else(|| "it does not say why".to_owned());
            return Err(PrometheusError::Refused(why));
        }
    };
    if data.result_type != "vector" {
        return Err(PrometheusError::NotAVector(data.result_type));
    }
    let elements: Vec<Element> = serde_json::from_value(data.result)?;
    elements.into_iter().map(sample).collect()
}

fn sample(element: Element) -> Result<Sample, PrometheusError> {
    let mut labels = element.metric;
    let name = labels.remove("__name__").unwrap_or_default();
    let (_, text) = element.value;
    let value = number(&text).ok_or(PrometheusError::NotANumber(text))?;
    Ok(Sample {
        name,
        labels,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_samples() {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"caracal_audit_dlq_size","instance":"a:9090"},"value":[1700000000.1,"3"]},
            {"metric":{"instance":"a:9090"},"value":[1700000000.1,"+Inf"]}]}}"#;
        let samples = vector(body).unwrap();
        assert_eq!(samples[0].name, "caracal_audit_dlq_size");
        assert!(samples[0].has(&[("instance", "a:9090")]));
        assert_eq!(samples[0].value, 3.0);
        assert_eq!(
            (samples[1].name.as_str(), samples[1].value),
            ("", f64::INFINITY)
        );
    }

    #[test]
    fn anything_else_is_told() {
        let told = |body: &str| vector(body.as_bytes()).unwrap_err().to_string();
        assert!(told("<html>").starts_with("this is not an answer of Prometheus"));
        let refused = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        assert_eq!(told(refused), "Prometheus refused the query: parse error");
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert_eq!(
            told(matrix),
            "Prometheus answered with a matrix, not with a vector"
        );
        let word = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"x"]}]}}"#;
        assert_eq!(told(word), "Prometheus answered with `x` for a number");
    }
}
