# Shared by the scripts beside it; sourced, not run.

say() { printf '\n==> %s\n' "$*"; }

die() {
  printf '\nerror: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or through sudo.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "this needs root: $*. Run it as root, or install sudo, or install the packages yourself."
  fi
}

# Installs Debian packages; services that they bring are not started.
install_packages() {
  have apt-get || die "please install the equivalent of these Debian packages: $*"
  say "installing: $*"
  # Lists may be absent on a fresh system, and stale ones name files that are gone.
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends "$@"
}

need_rust() {
  have cargo || PATH="$HOME/.cargo/bin:$PATH"
  have cargo || die "Rust is missing. Install version 1.95 or later from https://rustup.rs, then run this again."
}

# aws-lc (cryptography), SQLite and mimalloc are compiled from C; nothing else is needed.
need_c_compiler() {
  have cc && printf '#include <stdlib.h>\nint main(void){return 0;}\n' |
    cc -x c - -o /dev/null 2>/dev/null && return
  install_packages gcc libc6-dev
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Postgres refuses to run as root; then its own user runs it. In $scratch, which the script makes.
as_postgres() {
  if [ "$(id -u)" -eq 0 ]; then
    runuser -u postgres -- env -C "$scratch" "$@"
  else
    "$@"
  fi
}

# Sets postgres_bin, where the server's programs are.
find_postgres() {
  local bin
  for bin in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
    [ -x "$bin/initdb" ] && postgres_bin=$bin && return
  done
  have initdb && postgres_bin=$(dirname "$(readlink -f "$(command -v initdb)")")
}
