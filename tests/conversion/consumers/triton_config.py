"""Parses a configuration as Triton does: ``python triton_config.py config.pbtxt``."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


def main(path):
    config = text_format.Parse(Path(path).read_text(), model_config_pb2.ModelConfig())
    print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
