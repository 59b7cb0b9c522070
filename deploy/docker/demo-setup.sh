#!/bin/sh
# Makes the demo federation of docker-compose.yml, once: provisions it, unpacks every kit where its owner alone will see
# it, gives the servers their certificates, and makes the first model. Does nothing if that has been done.
#
# It works in the current directory, which holds a folder for each container to come.
set -eu
umask 077
if [ -e provisioner/done ]; then
    exit 0
fi
# Nothing was ever started from what a broken attempt left: every service waits for this script.
find provisioner hub site-1 site-2 site-3 operator broker front store -mindepth 1 -delete

broker=${FLEDGE_DEMO_BROKER:-broker.fledge.example:443}
store=${FLEDGE_DEMO_STORE:-store.fledge.example:443}
cat >provisioner/project.yml <<END
name: demo
aggregator:
  org: hub
  address: ${broker%:*}
  names: [rabbitmq, localhost]
broker: amqps://$broker/demo
store: s3s://$store/demo
sites:
  - {name: site-1, org: hospital-1}
  - {name: site-2, org: hospital-2}
  - {name: site-3, org: hospital-3}
operators:
  - {name: operator, email: operator@hub.example, org: hub, roles: [super]}
trainer: fledge.demo.task:trainer
END
fledge provision provisioner/project.yml -o provisioner/federation >/dev/null
for password in provisioner/federation/passwords/*; do
    name=${password##*/}
    case $name in
        aggregator) place=hub ;;
        *) place=$name ;;
    esac
    fledge kit "provisioner/federation/kits/$name.zip" -o "$place/kit" --password-file "$password"
done
rm -r provisioner/federation/passwords

# The servers run as users of their own, so what is theirs is for the group; the aggregator needs none of it.
hand() { install -m 0640 "$1" "$2"; }
hand hub/kit/tls/ca.pem broker/ca.pem
hand hub/kit/servers/broker.pem broker/server.pem
hand hub/kit/servers/broker.key broker/server.key
hand hub/kit/tls/ca.pem front/ca.pem
hand hub/kit/servers/store.pem front/server.pem
hand hub/kit/servers/store.key front/server.pem.key
rm -r hub/kit/servers

secret() { python -c 'import secrets; print(secrets.token_urlsafe(32))'; }
password=$(secret)
cat >broker/admin.conf <<END
default_user = admin
default_pass = $password
default_user_tags.administrator = true
END
printf 'https://admin:%s@%s\n' "$password" "${FLEDGE_DEMO_MANAGEMENT:-rabbitmq:15671}" >hub/management
# SeaweedFS takes its identities from the first file; MinIO and its kin have one user to begin with, in the other two.
python -m deploy.docker.seaweedfs demo provisioner/federation/store.json store/identities.json
printf 'admin' >store/root-user
secret >store/root-password
chmod 0640 broker/admin.conf store/*

seconds=${FLEDGE_DEMO_SECONDS:-2.0}
for number in 0 1 2; do
    printf '\n[options]\nseed = 42\nhospitals = 3\nhospital = %s\nseconds = %s\n' "$number" "$seconds" \
        >>"site-$((number + 1))/kit/worker.toml"
done
fledge init-run fledge.demo.task:trainer -o hub/kit/run --name demo --option seed=42 --option hospitals=3
touch provisioner/done
