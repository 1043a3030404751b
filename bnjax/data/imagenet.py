"""The command `python -m bnjax.data.imagenet`: see `bnjax.data.prepare.imagenet`."""

from bnjax.command import command

if __name__ == "__main__":
    with command():  # around the import too, which takes an extra
        from bnjax.data.prepare.imagenet import main

        main()
