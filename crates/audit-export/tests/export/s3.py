"""The other side of the export's test: an S3 server's bucket, and DuckDB as its reader.

    s3.py make URL BUCKET      makes the bucket, with object lock, and a user who may use it
    s3.py report URL BUCKET    what is in it, and what a query over all objects answers
"""

import json
import sys
import tempfile
from pathlib import Path

import boto3
import duckdb

REGION = "eu-central-1"


def client(service, url):
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="root",
        aws_secret_access_key="root",
    )


def make(url, bucket):
    client("s3", url).create_bucket(
        Bucket=bucket,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )
    iam = client("iam", url)
    iam.create_user(UserName="exporter")
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}],
    }
    iam.put_user_policy(
        UserName="exporter", PolicyName="all", PolicyDocument=json.dumps(policy)
    )
    key = iam.create_access_key(UserName="exporter")["AccessKey"]
    print(json.dumps({"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}))


def report(url, bucket, key, secret):
    s3 = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    objects = {}
    with tempfile.TemporaryDirectory() as place:
        for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]:
            got = s3.get_object(Bucket=bucket, Key=entry["Key"])
            objects[entry["Key"]] = {
                "type": got["ContentType"],
                "lock": got.get("ObjectLockMode"),
                "until": str(got.get("ObjectLockRetainUntilDate")),
            }
            (Path(place) / entry["Key"].replace("/", "_")).write_bytes(got["Body"].read())
        found = duckdb.sql(
            f"""select zone_id, chain_seq, decision, severity_id, event_type,
                       json_extract_string(metadata_json, '$.resource') as resource
                from '{place}/*.parquet' order by zone_id, chain_seq"""
        ).fetchall()
    print(json.dumps({"objects": objects, "rows": found}))


if __name__ == "__main__":
    {"make": make, "report": report}[sys.argv[1]](*sys.argv[2:])
