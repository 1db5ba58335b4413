#!/bin/sh
# Run by the image of PostgreSQL when its volume is empty: three databases, each with an owner of its own.
set -eu
make() {
    psql -v ON_ERROR_STOP=1 --no-psqlrc -d postgres -U "$POSTGRES_USER" -v name="$1" -v password="$2" <<END
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
END
}
make wbc "$STORE_PASSWORD"
make mlflow "$MLFLOW_PASSWORD"
make prefect "$PREFECT_PASSWORD"
