#!/bin/sh
# Makes database servers available to the tests. What the tests then need in their environment is printed as `export`
# lines; everything meant for a person goes to stderr.
#
#   1. A server whose KADDS_TEST_<NAME>_URL is set needs nothing.
#   2. Installed binaries are used as they are.
#   3. As root on Debian or Ubuntu: the distribution's packages.
#   4. Where docker works: docker-compose.test.yml.
#   5. Otherwise: says what is missing, and fails.
set -eu
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }

has_program() { # Debian's servers stand outside an ordinary user's PATH
    for folder in $(printf '%s' "$PATH" | tr ':' ' ') /usr/sbin /usr/local/sbin; do
        if [ -x "$folder/$1" ]; then return 0; fi
    done
    return 1
}

has_postgres() {
    for program in /usr/lib/postgresql/*/bin/initdb; do
        if [ -x "$program" ]; then return 0; fi
    done
    has_program initdb
}

has_mariadb() { has_program mariadbd && has_program mariadb-install-db; }

missing=""
packages=""
if [ -z "${KADDS_TEST_POSTGRES_URL:-}" ] && ! has_postgres; then
    missing="$missing postgres"
    packages="$packages postgresql"
fi
if [ -z "${KADDS_TEST_MARIADB_URL:-}" ] && ! has_mariadb; then
    missing="$missing mariadb"
    packages="$packages mariadb-server"
fi
if [ -z "$missing" ]; then exit 0; fi

# The packages would make a cluster and start services; the tests start servers of their own and want neither.
# Both files are removed again, and an administrator's own are left alone.
policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/kadds-tests.conf
own_policy=""
cleanup() {
    rm -f "$no_cluster"
    if [ -n "$own_policy" ]; then rm -f "$policy"; fi
}

install_packages() {
    trap cleanup EXIT
    trap 'exit 1' INT TERM
    if [ ! -e "$policy" ]; then
        own_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    mkdir -p "$(dirname "$no_cluster")"
    echo "create_main_cluster = false" >"$no_cluster"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2
    # shellcheck disable=SC2086 # a list of words
    apt-get install -q -y --no-install-recommends $packages >&2
}

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Installing for the tests:$packages"
    install_packages
    exit 0
fi

if docker info >/dev/null 2>&1; then
    say "Starting for the tests, by docker-compose.test.yml:$missing"
    profiles=""
    for name in $missing; do profiles="$profiles --profile $name"; done
    # shellcheck disable=SC2086 # a list of words
    docker compose -f docker-compose.test.yml $profiles up --detach --wait >&2
    for name in $missing; do
        case $name in
        postgres)
            address=$(docker compose -f docker-compose.test.yml port postgres 5432)
            echo "export KADDS_TEST_POSTGRES_URL='postgresql+psycopg://postgres:kadds@$address/postgres'"
            ;;
        mariadb)
            address=$(docker compose -f docker-compose.test.yml port mariadb 3306)
            echo "export KADDS_TEST_MARIADB_URL='mariadb+pymysql://root:kadds@$address/mysql'"
            ;;
        esac
    done
    exit 0
fi

say "The tests need database servers that are not here:$missing"
say "Do one of these:"
say "  - run \`make test\` as root on Debian or Ubuntu, which installs:$packages"
say "  - install them yourself"
say "  - start docker (\`docker info\` fails now)"
say "  - name running servers, with a user who may create databases:"
for name in $missing; do
    case $name in
    postgres) say "      KADDS_TEST_POSTGRES_URL=postgresql+psycopg://USER:PASSWORD@HOST:5432/postgres" ;;
    mariadb) say "      KADDS_TEST_MARIADB_URL=mariadb+pymysql://USER:PASSWORD@HOST:3306/mysql" ;;
    esac
done
exit 1
