#!/bin/sh
# The secrets of deploy/compose.yaml, made anew into a folder that only its owner may enter: sh deploy/secrets.sh [FOLDER]
# A file that is there stays. A password that was changed here must be changed where it is used, too.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder" && chmod 700 "$folder"
cd "$folder"

secret() { openssl rand -hex 24; }
write() { [ -e "$1" ] && cat > /dev/null || cat > "$1"; }

store=$(secret) mlflow=$(secret) prefect=$(secret) dvc_key=$(secret) mlflow_key=$(secret)
if [ ! -e postgres.env ]; then
    write postgres.env <<END
POSTGRES_PASSWORD=$(secret)
STORE_PASSWORD=$store
MLFLOW_PASSWORD=$mlflow
PREFECT_PASSWORD=$prefect
END
    write store.env <<END
WBC_STORE_URL=postgresql://wbc:$store@postgres:5432/wbc
END
    write prefect.env <<END
PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://prefect:$prefect@postgres:5432/prefect
END
    write mlflow.env <<END
MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://mlflow:$mlflow@postgres:5432/mlflow
AWS_ACCESS_KEY_ID=mlflow
AWS_SECRET_ACCESS_KEY=$mlflow_key
END
    write dvc.env <<END
AWS_ACCESS_KEY_ID=dvc
AWS_SECRET_ACCESS_KEY=$dvc_key
END
    # Each program may use its own bucket only.
    write s3.json <<END
{"identities": [
  {"name": "dvc", "credentials": [{"accessKey": "dvc", "secretKey": "$dvc_key"}],
   "actions": ["Read:dvc", "Write:dvc", "List:dvc", "Tagging:dvc"]},
  {"name": "mlflow", "credentials": [{"accessKey": "mlflow", "secretKey": "$mlflow_key"}],
   "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"]}
]}
END
fi
# For a first try. Put the hospital's certificate and key in their place.
if [ ! -e tls.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj "/CN=${WBC_HOST:-localhost}" \
        -addext "subjectAltName=DNS:${WBC_HOST:-localhost},IP:127.0.0.1" -keyout tls.key -out tls.crt 2> /dev/null
fi
# Containers run as users of their own and must read them. The folder keeps everybody else out.
chmod 644 ./*
echo "secrets in $(pwd)"
