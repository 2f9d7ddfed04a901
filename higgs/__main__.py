from higgs.cli.app import main

raise SystemExit(main())
