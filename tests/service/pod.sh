# Run by `unshare --mount` as root: a program as deploy/kubernetes/deployment.yaml lets the container run. The root file system is
# read-only, the user is nobody's root, has no capability and gets none; only /tmp and $PLACE/audit can be written.
#   sh pod.sh BENTO SETTINGS PYTHON_HOME USER PROGRAM...
set -eu
bento=$1 settings=$2 home=$3 user=$4; shift 4
mount --make-rprivate /
mount -t tmpfs tmpfs /srv
cp -r "$bento" /srv/bento
cp -r "$settings" /srv/settings
mkdir /srv/audit /srv/python
chmod -R a+rX /srv/bento /srv/settings
mount --bind "$home" /srv/python
top=/$(echo "$home" | cut -d/ -f2)
if [ "$top" = /root ]; then                      # where the user may not enter, as root's own Python is there
    mount -t tmpfs -o mode=755 tmpfs /root
    mkdir -p "$home"
    mount --bind /srv/python "$home"
    mount -o remount,ro /root
fi
mount -t tmpfs -o mode=755 tmpfs /srv/audit
chown "$user:$user" /srv/audit
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,bind,ro /
mount -o remount,ro /srv
cd /srv/bento/src
exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
