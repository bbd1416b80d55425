"""Prints a key (ID:SECRET) that a moto server has issued and that may do everything with secrets.

The server has to be started with INITIAL_NO_AUTH_ACTION_COUNT=3: these are the three requests that it
takes from anybody. From then on it checks every signature and every permission.
"""

import json
import sys

import boto3

iam = boto3.client(
    "iam",
    endpoint_url=sys.argv[1],
    region_name="us-east-1",
    aws_access_key_id="anybody",
    aws_secret_access_key="anything",
)
allow = {"Effect": "Allow", "Action": "secretsmanager:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
iam.create_user(UserName="caracal")
iam.put_user_policy(UserName="caracal", PolicyName="secrets", PolicyDocument=policy)
key = iam.create_access_key(UserName="caracal")["AccessKey"]
print(f"{key['AccessKeyId']}:{key['SecretAccessKey']}")
