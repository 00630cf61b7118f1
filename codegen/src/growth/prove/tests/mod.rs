mod transforms;
