#!/bin/sh
# Puts a redis-server of Debian's, with the libraries it needs, into a directory; without root, and without a change to
# the system. Does nothing where one is installed.
#
#     unpack_server.sh DIRECTORY
set -eu
if command -v redis-server >/dev/null || command -v valkey-server >/dev/null; then
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg >/dev/null || {
    echo "no redis-server or valkey-server here, and no apt-get to fetch one: install one of them" >&2
    exit 1
}
rm -rf "$1"
mkdir -p "$1/packages"
target=$(cd "$1" && pwd)
# The packages' lists may have to be fetched first, which only root can: apt-get says so.
(cd "$target/packages" && apt-get download --quiet redis-server redis-tools libjemalloc2 liblzf1 libatomic1)
for package in "$target"/packages/*.deb; do
    dpkg --extract "$package" "$target"
done
libraries=$(find "$target" -name '*.so*' -exec dirname {} + | sort -u | paste -sd:)
LD_LIBRARY_PATH=$libraries "$target/usr/bin/redis-server" --version
