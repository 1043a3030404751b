"""The command `python -m bnjax.data.tiny_imagenet`: see `bnjax.data.prepare.tiny_imagenet`."""

from bnjax.command import command

if __name__ == "__main__":
    with command():  # around the import too, which takes an extra
        from bnjax.data.prepare.tiny_imagenet import main

        main()
