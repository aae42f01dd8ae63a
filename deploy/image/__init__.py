"""Build the container image without a Docker engine, and run it: `scripts/image`.

- `build`: a stand-in for the base image, and the build with buildah
- `container`: the image as a container of runc
- `world`: Redis, engines, configuration and requests of the container
- `__main__`: the command
"""
