"""What colcon installs of the package."""

from setuptools import find_packages, setup

NAME = "lram_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/policy.launch.py"]),
        (f"share/{NAME}/config", ["config/arm.yaml", "config/image.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="lram-export contributors",
    maintainer_email="lram-export@users.noreply.github.com",
    description="A lifecycle node that lets a policy of lram-export act on a robot",
    license="Apache-2.0",
    tests_require=["pytest"],
    entry_points={"console_scripts": [f"policy_node = {NAME}.node:main"]},
)
