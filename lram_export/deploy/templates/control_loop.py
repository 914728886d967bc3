"""The control loop of this kit: `lram-export loop`, with the robot of this folder's robot.py.

python control_loop.py NAME.lram --robot robot        # on the robot
python control_loop.py NAME.lram                      # a rehearsal: actions go nowhere
python control_loop.py --help
"""

import sys
from pathlib import Path

from lram_export.entry import main

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.argv.insert(1, "loop")
    main()
