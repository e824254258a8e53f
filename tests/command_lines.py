"""Command lines as people really write them, each with a secret in it; the corpus of the tests of redaction."""

from __future__ import annotations

import shlex

__all__ = ["COMMAND_LINES", "SECRET"]

SECRET = "hunter2hunter2"

#: § stands for the secret.
_LINES = r"""
mysql -u root -p§ shop -e 'select 1'
mysql --user=root --password=§ shop
mysqldump -hdb1 -uroot -p§ --all-databases
sh -c "mysqldump -u root -p§ shop | gzip > /backup/shop.sql.gz"
env MYSQL_PWD=§ mysqladmin status
mysql -e "CREATE USER 'app'@'%' IDENTIFIED BY '§'"
mysql -e "SET PASSWORD FOR 'app'@'%' = '§'"
psql -c "ALTER USER app WITH PASSWORD '§'"
env PGPASSWORD=§ pg_dump -h db1 -U app shop
psql postgresql://app:§@db1/shop -c 'select 1'
psql "host=db1 user=app password=§ dbname=shop"
redis-cli -h cache -a § ping
redis-cli -h cache AUTH §
redis-cli config set requirepass §
redis-cli acl setuser app on >§ ~* +@all
redis-cli -u redis://:§@cache:6379/0 info
mongosh --host db -u admin -p § --eval 'db.stats()'
mongodump mongodb://admin:§@db/shop
sqlcmd -S db1 -U sa -P § -Q 'select 1'
sqlplus scott/§@orcl
sshpass -p § ssh deploy@web1 uptime
sshpass -p§ scp a.tar deploy@web1:/tmp
curl -u alice:§ https://example.org/
curl -su alice:§ https://example.org/
curl --user alice:§ -o out https://example.org/
curl -H 'Authorization: Bearer §' https://example.org/
curl -H 'X-Api-Key: §' https://example.org/
curl -b session=§ https://example.org/
curl -d '{"user": "alice", "password": "§"}' https://example.org/login
curl 'https://example.org/v1?api_key=§&page=2'
sh -c "curl -s -S --user alice:§ https://example.org | tar xz"
wget --http-user=alice --http-password=§ https://example.org/a
git clone https://alice:§@example.org/x.git
git -c http.extraHeader='Authorization: Basic §' fetch
docker login -u alice -p § registry.example.org
docker run -e DB_PASSWORD=§ -d app
skopeo copy --src-creds alice:§ docker://a docker://b
kubectl create secret generic db --from-literal=dsn=§
kubectl config set-credentials alice --token=§
helm upgrade app ./chart --set db.password=§
vault login §
vault kv put kv/app dsn=§
aws configure set aws_secret_access_key §
env AWS_SECRET_ACCESS_KEY=§ aws s3 ls
az login --service-principal -u app -p § --tenant t
gcloud sql users set-password app --password §
openssl rsa -in a.key -passin pass:§ -out b.key
openssl passwd -6 §
openssl enc -aes-256-cbc -k § -in a -out b
ssh-keygen -p -P old -N § -f id_ed25519
gpg --batch --passphrase § -d a.gpg
htpasswd -bB /etc/nginx/users alice §
ldapsearch -D cn=admin,dc=example -w § -b dc=example
smbclient //nas/share -U alice%§ -c ls
keytool -importkeystore -storepass § -keystore a.jks
ipmitool -H bmc1 -U admin -P § power status
snmpget -v3 -u monitor -A § -X § switch1 sysUpTime.0
zip -P § out.zip a b
7z a -p§ out.7z a b
sh -c "echo alice:§ | chpasswd"
sh -c "echo § | sudo -S systemctl restart nginx"
bash -c 'docker login --password-stdin registry <<< §'
useradd -m -p § alice
rabbitmqctl add_user alice §
nmcli dev wifi connect office password §
lftp -u alice,§ sftp://files
ansible-playbook site.yml -e ansible_become_pass=§
ansible-vault encrypt_string § --name token
terraform apply -var db_password=§
app --token § --verbose
bash -lc "app serve --token § --port 80"
expect -c 'spawn ssh web1; expect assword; send "§\r"'
systemctl set-environment API_TOKEN=§
git clone https://§@example.org/x.git
curl 'https://example.org/v1?key=§&page=2'
curl 'https://example.org/v1?page=2&token=§'
curl 'https://example.org/v1?sig=§'
app --pwd §
app --pwd=§ --verbose
app --pin §
app --user-pin=§
pkcs11-tool --login --so-pin § --init-token
plink -pw § deploy@web1 uptime
env PW=§ app
env DB_PW=§ app
app --otp §
app --wifi-psk=§
curl -H 'Authorization: token §' https://example.org/
"""

COMMAND_LINES = [tuple(word.replace("§", SECRET) for word in shlex.split(line)) for line in _LINES.strip().splitlines()]
