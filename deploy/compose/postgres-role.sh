#!/bin/bash
# Runs once, on an empty Postgres: the database, and an ordinary role that owns it, migrates, and makes a
# role for each service.
set -euo pipefail
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --set "password=$(cat /run/secrets/caracalDbPassword)" <<'SQL'
create role caracal login createrole password :'password';
create database caracal owner caracal;
SQL
